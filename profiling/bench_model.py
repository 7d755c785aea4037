"""Time denoising steps of released transformers with random weights, sparse beside dense.

``python -m vidsparse.profiling.bench_model --shape wan2.1-14b-720p --out results.json``.

Time is real; masks are not: attention of random weights is diffuse, so methods run at a given
density and what follows from the content of a video (thresholds, head types) means nothing here.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsparse.attention import DenseOp, SparseAttention, dense_attention
from vidsparse.choices import check_precision
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod
from vidsparse.plan import CallSite
from vidsparse.precision import Precision
from vidsparse.profiling.clock import Clock
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.method_spec import parse_method, split_methods
from vidsparse.profiling.model_shapes import Maker, ModelShape, find_shape
from vidsparse.profiling.recorder import CallRecorder
from vidsparse.profiling.rows import Row, RowFile, module_command, print_error
from vidsparse.profiling.timed_calls import FIRST_SPARSE_STEP, NUM_STEPS
from vidsparse.schedule import DenseSchedule

# One dense step and five sparse ones stand for a run of 50: both searches of AdaSpa fall in them.
_SPARSE_STEPS = 5
_DENSE = "dense"
# What a method learns belongs to its planning, and orders are left as they are entered.
_PART = {"observe": "plan", "restore": "permute"}
_GIB = 2**30


@dataclass
class TimedRecorder(CallRecorder):
    """A recorder whose marks go to a clock."""

    clock: Clock | None = None

    def mark(self, part: str) -> None:
        """End a part of a call on the clock."""
        if self.clock is not None:
            self.clock.mark(_PART.get(part, part))


@dataclass
class TimedAttention(SparseAttention):
    """Sparse attention that tells its time from that of the rest of the model.

    Attributes:
        seen: shapes and layout of the last call.
    """

    recorder: TimedRecorder = field(default_factory=TimedRecorder)
    seen: tuple[torch.Size, VideoLayout] | None = None

    @property
    def dense_steps(self) -> int:
        """Steps of a short run before the sparse ones."""
        return int(self.schedule.dense_steps)

    @property
    def num_steps(self) -> int:
        """Steps of a short run."""
        return self.dense_steps + _SPARSE_STEPS

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        layout: VideoLayout,
        site: CallSite,
        dense: DenseOp = dense_attention,
    ) -> Tensor:
        """Attend; what precedes a call is "other", a dense call is "dense".

        Dense attention gets the real tokens of each row without a mask: a mask would cost it its
        fastest backend, and a sparse method would look better than it is.
        """
        self.recorder.mark("other")
        self.seen = (q.shape, layout)
        if layout.text_valid is not None:
            dense = partial(dense_without_mask, layout)
        out = super().__call__(q, k, v, layout=layout, site=site, dense=dense)
        self.recorder.mark(_DENSE)
        return out


def dense_without_mask(layout: VideoLayout, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend per batch row to its real tokens: (B, H, S, D) in and out, zeros for padding."""
    ends = [layout.video_end + valid for valid in layout.text_valid or ()]
    if ends == [q.shape[2]]:
        return dense_attention(q, k, v)
    out = torch.zeros_like(q)
    for row, end in enumerate(ends):
        real = (slice(row, row + 1), slice(None), slice(0, end))
        out[real] = dense_attention(q[real], k[real], v[real])
    return out


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of one forward: of all, and of its self-attentions part by part."""

    step_ms: float
    parts: dict[str, float]

    @property
    def attention_ms(self) -> float:
        """All that belongs to the self-attentions."""
        return sum(ms for part, ms in self.parts.items() if part != "other")


@dataclass
class ModelBench:
    """One transformer on its device, and the backend that its dense attention runs on.

    Args:
        shape: what to build.
        device: where.
        num_layers: blocks built; None for all of them.
        compiler: backend of ``torch.compile`` for the blocks, dense and sparse alike; None runs
            them as they are.

    Raises:
        UsageError: the memory does not suffice, and nothing was allocated then; or the blocks
            cannot be compiled one by one.
    """

    shape: ModelShape
    device: torch.device
    num_layers: int | None = None
    compiler: str | None = None

    def __post_init__(self) -> None:
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        if self.num_layers is not None:
            self.shape = with_layers(self.shape, self.num_layers)
        if self.compiler is not None:
            check_compilable(self.shape)
        check_memory(self.shape, self.device, self.dtype)
        self.model: Any = self.shape.build(self.device, self.dtype)
        if self.compiler is not None:
            compile_blocks: Any = self.model.compile_repeated_blocks
            compile_blocks(fullgraph=True, backend=self.compiler)
        self.inputs = self.shape.inputs(self.shape, self.model, Maker(self.device, self.dtype))

    def rows(
        self,
        specs: list[str],
        density: float,
        *,
        rounds: int = 1,
        on_skip: Callable[[str], None] = lambda reason: None,
    ) -> Iterator[Row]:
        """Time each method in runs of its own, beside the dense step of the same run.

        Args:
            specs: methods, as ``name`` or ``name:field=value``; ``name@8bit`` computes sparse and
                warm-up steps in 8 bits, ``name@8bit-sparse`` sparse ones alone. The dense step
                beside them is always in the model's own precision.
            density: in (0, 1).
            rounds: runs of each method.
            on_skip: called with the reason when a method cannot run here.
        """
        with self._fastest_dense() as backend:
            plain = self._attention("random", density)
            dense_peak = self._peak_of(lambda: self._run(plain, stop=1))
            for spec in specs:
                try:
                    row = self._measure(spec, density, rounds)
                except UsageError as error:
                    on_skip(f"{self.shape.name}, {spec} at density {density}: {error}")
                    continue
                yield {
                    **row,
                    "dense_peak_gb": dense_peak,
                    "dense_backend": backend,
                    "compiled": self.compiler is not None,
                }

    def _measure(self, spec: str, density: float, rounds: int) -> Row:
        attention = self._attention(spec, density)
        steps: list[list[StepTimes]] = []

        def runs() -> None:
            self._warm(attention)
            steps.extend(self._run(attention) for _ in range(rounds))

        peak = self._peak_of(runs)
        return {**self._row(spec, density, attention, steps), "peak_gb": peak}

    def _attention(self, spec: str, density: float) -> TimedAttention:
        spec, _, precision = spec.partition("@")
        bits = Precision(check_precision(precision or "native"))
        # In 8 bits the warm-up has a step of its own beside the dense one that all is compared to.
        schedule = DenseSchedule(dense_steps=2 if bits is Precision.ALL_8BIT else 1)
        return TimedAttention(parse_method(spec, density), schedule=schedule, precision=bits)

    @torch.inference_mode()
    def _run(self, attention: TimedAttention, stop: int | None = None) -> list[StepTimes]:
        """Denoise the steps of a short run before ``stop``; a step is one forward."""
        from vidsparse.pipelines.attach import attach

        attachment = attach(self.model, attention)
        num_steps, precision = attention.num_steps, attention.precision
        attachment.tracker.restart(told=True, num_steps=num_steps)
        times = []
        try:
            for step in range(stop or num_steps):
                attention.precision = precision if step else Precision.NATIVE
                time = torch.full((self.shape.rows,), 1000.0 * (1 - step / num_steps))
                clock = attention.recorder.clock = Clock(self.device)
                self.model(timestep=time.to(self.device), **self.inputs, return_dict=False)
                clock.mark("other")
                parts = clock.milliseconds()
                times.append(StepTimes(sum(parts.values()), parts))
        finally:
            attention.precision = precision
            attention.recorder.clock = None
            attachment.detach()
        return times

    @torch.inference_mode()
    def _warm(self, attention: TimedAttention) -> None:
        """Compile the method's kernels by calls of one layer alone."""
        if attention.seen is None:
            self._run(attention, stop=1)
        shape, layout = attention.seen  # type: ignore[misc]
        make = Maker(self.device, self.dtype)
        q, k, v = (replace(make, seed=seed).normal(*shape) for seed in range(3))
        steps = attention.num_steps
        for step in range(1, steps):
            site = CallSite("transformer", 0, 1, step, steps, 1 - step / steps, 0, -2)
            attention(
                q, k, v, layout=layout, site=site, dense=nn.functional.scaled_dot_product_attention
            )
        attention.reset()
        attention.recorder.reset()

    @contextmanager
    def _fastest_dense(self) -> Iterator[str]:
        """Let torch's attention run on the backend that makes the dense step shortest."""
        if self.device.type != "cuda":
            yield "cpu"
            return
        times = {}
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(_first(backend), set_priority=True):
                runs = [self._run(self._attention("random", 0.5), stop=1)[0].step_ms for _ in "ab"]
            times[backend] = min(runs)
        best = min(times, key=lambda backend: times[backend])
        with sdpa_kernel(_first(best), set_priority=True):
            yield best.name.removesuffix("_ATTENTION").lower()

    def _peak_of(self, action: Callable[[], object]) -> float | None:
        """Return the most GiB that torch held on the GPU meanwhile; None without one."""
        if self.device.type != "cuda":
            action()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        action()
        return round(torch.cuda.max_memory_allocated(self.device) / _GIB, 2)

    def _row(
        self, spec: str, density: float, attention: TimedAttention, runs: list[list[StepTimes]]
    ) -> Row:
        dense = _median([run[0] for run in runs])
        warm_up = _median([run[attention.dense_steps - 1] for run in runs])
        sparse = mean_sparse_step(attention.method, runs)
        share = dense.attention_ms / dense.step_ms
        realised = attention.recorder.sparse_density() or 1.0
        ceiling = 1 / (1 - share + share * realised)
        speedup = dense.step_ms / sparse.step_ms
        whole = FIRST_SPARSE_STEP * warm_up.step_ms
        whole += (NUM_STEPS - FIRST_SPARSE_STEP) * sparse.step_ms
        return {
            "shape": self.shape.name,
            "tokens": self.shape.tokens,
            "layers": self.shape.layers,
            "method": spec,
            "requested_density": density,
            "density": round(realised, 4),
            "dense_ms": round(dense.step_ms, 2),
            "warm_up_ms": round(warm_up.step_ms, 2),
            "step_ms": round(sparse.step_ms, 2),
            "attention_share": round(share, 4),
            **{f"{part}_ms": round(sparse.parts.get(part, 0.0), 2) for part in _PARTS},
            "attention_speedup": round(dense.attention_ms / sparse.attention_ms, 3),
            "step_speedup": round(speedup, 3),
            "amdahl_fraction": round(speedup / ceiling, 4),
            "e2e_speedup_50": round(NUM_STEPS * dense.step_ms / whole, 3),
        }


_PARTS = ("plan", "permute", "kernel", "other")


def mean_sparse_step(method: SparseMethod, runs: list[list[StepTimes]]) -> StepTimes:
    """Return the mean sparse step of a run of 50 steps, from the steps of short runs.

    A method's phases count as often as they occur in 50 steps; where all steps do the same, the
    first one counts once, because it also starts what later ones go on from.

    Args:
        method: what ran.
        runs: the steps of each run, of which the last five are sparse.

    Raises:
        UsageError: the short runs lack a phase.
    """
    num_steps = len(runs[0])
    first = num_steps - _SPARSE_STEPS
    short = method.phases(num_steps, first)
    counts = {p.name: len(p.steps) for p in method.phases(NUM_STEPS, FIRST_SPARSE_STEP)}
    groups = {p.name: p.steps for p in short if p.steps}
    if not groups:
        groups = {"first": (first,), "later": tuple(range(first + 1, num_steps))}
        counts = {"first": 1, "later": NUM_STEPS - FIRST_SPARSE_STEP - 1}
    means = {
        name: _median([run[step] for run in runs for step in steps])
        for name, steps in groups.items()
    }
    missing = [name for name, count in counts.items() if count and name not in means]
    if missing:
        raise UsageError(f"{method.name}: a run of {num_steps} steps has no {', '.join(missing)}")
    total = sum(counts.values())
    parts = {part for mean in means.values() for part in mean.parts}
    return StepTimes(
        sum(counts[n] * m.step_ms for n, m in means.items()) / total,
        {p: sum(counts[n] * m.parts.get(p, 0.0) for n, m in means.items()) / total for p in parts},
    )


def _median(steps: list[StepTimes]) -> StepTimes:
    """Return the step of median length: medians of its parts would not add up to a step."""
    return sorted(steps, key=lambda step: step.step_ms)[(len(steps) - 1) // 2]


def with_layers(shape: ModelShape, num_layers: int) -> ModelShape:
    """Return a shape with fewer blocks.

    Raises:
        UsageError: the number is out of range, or blocks of two kinds cannot be cut alike.
    """
    if not 1 <= num_layers <= shape.layers:
        raise UsageError(f"--layers {num_layers} must lie in 1 to {shape.layers} for {shape.name}")
    config = {**shape.config, "num_layers": num_layers}
    if shape.transformer == "HunyuanVideoTransformer3DModel":
        # A third of its blocks are dual, the others single.
        config["num_layers"] = max(1, round(num_layers / 3))
        config["num_single_layers"] = num_layers - config["num_layers"]
    return replace(shape, config=config, layers=num_layers)


def check_compilable(shape: ModelShape) -> None:
    """Refuse a shape whose class does not name its repeated blocks.

    Raises:
        UsageError: there are none.
    """
    import diffusers

    if not getattr(diffusers, shape.transformer)._repeated_blocks:
        raise UsageError(
            f"diffusers' {shape.transformer} names no repeated blocks to compile; "
            f"time {shape.name} without --compile"
        )


def check_memory(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a shape that does not fit.

    Raises:
        UsageError: the device has less free memory than the model's least.
    """
    if device.type != "cuda":
        if shape.tokens > 8192:
            raise UsageError(
                f"{shape.name} has {shape.tokens} tokens, too many for a CPU; use a GPU, or "
                "--shape tiny-cpu"
            )
        return
    needed, free = shape.bytes_needed(dtype), torch.cuda.mem_get_info(device)[0]
    if needed > free:
        raise UsageError(
            f"{shape.name} with {shape.layers} layers needs at least {needed / _GIB:.1f} GiB, "
            f"{device} has {free / _GIB:.1f} GiB free; use fewer --layers or a smaller --shape"
        )


def compiler_of(compiled: bool) -> str | None:
    """Name the compiler that ``--compile`` stands for."""
    return "inductor" if compiled else None


def _first(backend: SDPBackend) -> list[SDPBackend]:
    """Put a backend before those that take what it refuses, as cross-attention masks."""
    rest = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    return [backend, *(other for other in rest if other is not backend)]


def main(arguments: list[str] | None = None) -> int:
    """Run the bench from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.bench_model")
    parser.add_argument("--shape", default="wan2.1-14b-720p")
    parser.add_argument("--methods", default="svg,draft,svg2")
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the blocks, dense and sparse alike"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the rows --out already has")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    command = module_command("vidsparse.profiling.bench_model")
    keep = RowFile(options.out, run_meta(device, command), append=options.append)
    try:
        bench = ModelBench(
            find_shape(options.shape), device, options.layers, compiler_of(options.compile)
        )
        for row in bench.rows(
            split_methods(options.methods),
            options.density,
            rounds=options.rounds,
            on_skip=lambda reason: print_error(f"skipped: {reason}"),
        ):
            keep(row)
    except UsageError as error:
        print_error(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
