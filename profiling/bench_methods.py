"""Time whole methods against dense attention: planning, permutation and kernel apart.

``python -m vidsparse.profiling.bench_methods --out results.json`` on a GPU.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.block_sparse_attention import AttentionOutput, block_sparse_attention
from vidsparse.kernels.permute import permute_qkv
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.profiling.bench import dense_functions
from vidsparse.profiling.clock import Clock
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.gate import check_sampled_rows
from vidsparse.profiling.method_spec import parse_method
from vidsparse.profiling.rows import Row, RowFile, module_command, print_error
from vidsparse.profiling.synthetic import video_qkv
from vidsparse.profiling.timing import time_interleaved

PARTS = ("plan", "permute", "kernel", "restore", "dense")
# A method's first sparse call (searches, first clustering) is no steady state.
_FIRST_CALLS = 3


@dataclass(frozen=True)
class MethodCase:
    """A shape to time methods at.

    Attributes:
        name: as in the results.
        layout: the sequence.
        heads: H.
        head_size: D.
        batch: B.
    """

    name: str
    layout: VideoLayout
    heads: int
    head_size: int
    batch: int = 1


CASES: dict[str, MethodCase] = {
    case.name: case
    for case in (
        MethodCase("wan14b-720p", VideoLayout(21, 45, 80), heads=40, head_size=128),
        MethodCase("wan14b-720p-8heads", VideoLayout(21, 45, 80), heads=8, head_size=128),
        MethodCase("wan1.3b-480p", VideoLayout(21, 30, 52), heads=12, head_size=128),
        MethodCase("small-d64", VideoLayout(13, 30, 45, text_before=226), heads=24, head_size=64),
        MethodCase("tiny", VideoLayout(4, 12, 16), heads=2, head_size=32),
    )
}


def bench_methods(
    cases: list[MethodCase],
    methods: list[str],
    densities: list[float],
    *,
    device: torch.device,
    repeats: int = 7,
    on_skip: Callable[[str], None] = lambda reason: None,
) -> Iterator[Row]:
    """Time every method at every density of every case.

    Args:
        cases: shapes.
        methods: names, or ``name:field=value:...`` with parameters.
        densities: requested densities, in (0, 1).
        device: where to run.
        repeats: consecutive denoising steps timed, each with a dense call beside it.
        on_skip: called with the reason when a method cannot run at a density.

    Yields:
        Rows with times in ms per call of one layer: medians over the steps, but ``plan_ms`` is a
        mean, so that plans that serve several steps are charged in full.

    Raises:
        AssertionError: an output is wrong; its time is not given.
    """
    for case, method, density in itertools.product(cases, methods, densities):
        try:
            yield bench_method(case, method, density, device=device, repeats=repeats)
        except UsageError as error:
            on_skip(f"{case.name}, {method} at density {density}: {error}")


def bench_method(
    case: MethodCase, spec: str, density: float, *, device: torch.device, repeats: int = 7
) -> Row:
    """Time one method at one density; see ``bench_methods``.

    Raises:
        AssertionError: the output is not attention under the plan's mask; no time is given then.
    """
    method = parse_method(spec, density)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = video_qkv(case.layout, case.batch, case.heads, case.head_size, device, dtype)
    state, dense = method.init_state(), _fastest_dense(q, k, v)
    clocks: list[Clock] = []
    for step in range(-_FIRST_CALLS, repeats):
        clock = Clock(device)
        site = CallSite("transformer", 1, 2, 10 + _FIRST_CALLS + step, 50, 0.5, 0, 0)
        plan, output = _timed_call(method, q, k, v, case.layout, site, state, clock)
        if plan is not None and output is not None and step == -1:
            check_sampled_rows(q, k, v, plan, output)
        clock.mark("rest")
        dense()
        clock.mark("dense")
        if step >= 0:
            clocks.append(clock)
    times = [clock.milliseconds() for clock in clocks]
    kept = 1.0 if plan is None else float(plan.density())
    return _row(case, spec, density, kept, times)


def _fastest_dense(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    functions = dense_functions(q, k, v)
    times = time_interleaved(functions, q.device, repeats=3, warmup_ms=1.0)
    return functions[min(functions, key=lambda name: times[name].median_ms)]


def _timed_call(
    method: SparseMethod,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: VideoLayout,
    site: CallSite,
    state: Any,
    clock: Clock,
) -> tuple[AttentionPlan | None, AttentionOutput | None]:
    """Do what ``SparseAttention`` does for a sparse call, with marks between the parts."""
    from vidsparse.attention import restore_output

    plan = method.decide(q, k, v, layout, site, state)
    clock.mark("plan")
    if plan is None:
        return None, None
    moved = permute_qkv(q, k, v, plan.q_order, plan.kv_order)
    clock.mark("permute")
    output = block_sparse_attention(
        *moved,
        plan.mask,
        stats_lse=plan.stats_lse,
        running=plan.running,
        compensate=plan.compensate,
    )
    clock.mark("kernel")
    method.observe(output, plan, site, state)
    restored = restore_output(output, plan)
    clock.mark("restore")
    return plan, restored


def _row(
    case: MethodCase, spec: str, density: float, kept: float, times: list[dict[str, float]]
) -> Row:
    median = {part: statistics.median(t.get(part, 0.0) for t in times) for part in PARTS}
    plan = statistics.fmean(t["plan"] for t in times)
    permute = median["permute"] + median["restore"]
    total = plan + permute + median["kernel"]
    return {
        "case": case.name,
        "method": spec,
        "density": round(kept, 4),
        "requested_density": density,
        "plan_ms": round(plan, 3),
        "permute_ms": round(permute, 3),
        "kernel_ms": round(median["kernel"], 3),
        "total_ms": round(total, 3),
        "dense_ms": round(median["dense"], 3),
        "overhead_fraction": round((total - median["kernel"]) / median["dense"], 4),
        "attention_speedup": round(median["dense"] / total, 3),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the bench from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.bench_methods")
    parser.add_argument("--cases", default="wan14b-720p,wan1.3b-480p,small-d64")
    parser.add_argument("--methods", default="svg,draft,svg2")
    parser.add_argument("--densities", default="0.5,0.3,0.2")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the rows --out already has")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    keep = RowFile(
        options.out,
        run_meta(device, module_command("vidsparse.profiling.bench_methods")),
        append=options.append,
    )
    cases = [_case(name) for name in options.cases.split(",")]
    densities = [float(text) for text in options.densities.split(",")]
    methods = options.methods.split(",")
    rows = bench_methods(
        cases,
        methods,
        densities,
        device=device,
        repeats=options.repeats,
        on_skip=lambda reason: print_error(f"skipped: {reason}"),
    )
    for row in rows:
        keep(row)
    return 0


def _case(name: str) -> MethodCase:
    if name not in CASES:
        raise UsageError(f"unknown case {name!r}; use {', '.join(CASES)}")
    return CASES[name]


if __name__ == "__main__":
    sys.exit(main())
