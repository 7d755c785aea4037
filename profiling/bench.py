"""Time block-sparse kernels against dense attention, after checking that they are right.

``python -m vidsparse.profiling.bench --json results.json`` needs torch and triton only.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsparse.files import write_text
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_sparse_attention import Impl
from vidsparse.kernels.launch import architecture
from vidsparse.kernels.ragged_block_mask import block_of_token
from vidsparse.kernels.testing import random_sizes
from vidsparse.profiling.contenders import contenders
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.kernel_cases import CPU_CASES, GPU_CASES, KernelCase
from vidsparse.profiling.precompile import compile_in_processes
from vidsparse.profiling.rows import print_error
from vidsparse.profiling.timing import Timing, time_interleaved

_SAMPLED_ROWS = 24

Mask = BlockMask | RaggedBlockMask
Planner = Callable[[], Mask]


@dataclass(frozen=True)
class Inputs:
    """Tensors of one case, and the function that builds its mask from a boolean one."""

    q: Tensor
    k: Tensor
    v: Tensor
    planner: Planner


def make_inputs(case: KernelCase, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Draw a case's tensors and mask; the same every time on one device."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, case.H, case.S, case.D)
    q, k, v = (
        torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3)
    )
    return Inputs(q, k, v, _planner(case, generator))


def _planner(case: KernelCase, generator: torch.Generator) -> Planner:
    H, S, device = case.H, case.S, generator.device
    blocks = case.clusters or (-(-S // case.block_q), -(-S // case.block_kv))
    dense = torch.rand(1, H, *blocks, generator=generator, device=device) < case.density
    if case.clusters is None:
        return lambda: BlockMask.from_dense(
            dense, block_q=case.block_q, block_kv=case.block_kv, seq_q=S, seq_kv=S
        )
    sizes = [random_sizes(1, H, n, S, generator=generator) for n in blocks]
    return lambda: RaggedBlockMask.from_sizes(dense, *sizes, seq_q=S, seq_kv=S)


def relative_error(inputs: Inputs, mask: Mask, out: Tensor) -> float:
    """Return the relative L2 error of sampled rows of the first and last head, in float64."""
    q, k, v = inputs.q, inputs.k, inputs.v
    rows = torch.linspace(0, q.shape[2] - 1, min(_SAMPLED_ROWS, q.shape[2])).long().to(q.device)
    wrong = right = 0.0
    for h in {0, q.shape[1] - 1}:
        keep = kept_keys(mask, h, rows)
        scores = q[0, h, rows].double() @ k[0, h].double().mT * q.shape[-1] ** -0.5
        weights = torch.softmax(scores.masked_fill(~keep, -torch.inf), -1).nan_to_num(0)
        exact = weights @ v[0, h].double()
        wrong += float((out[0, h, rows].double() - exact).square().sum())
        right += float(exact.square().sum())
    return math.sqrt(wrong / right)


def kept_keys(mask: Mask, head: int, rows: Tensor) -> Tensor:
    """Return (rows, Skv) bool: the keys that rows of one head of the first batch row attend to."""
    dense = mask.to_dense()[0, head]
    if isinstance(mask, BlockMask):
        keys = torch.arange(mask.seq_kv, device=rows.device)
        return dense[rows // mask.block_q][:, keys // mask.block_kv]
    row_blocks = block_of_token(mask.q_offsets[0, head], mask.seq_q)[rows]
    return dense[row_blocks][:, block_of_token(mask.kv_offsets[0, head], mask.seq_kv)]


def dense_functions(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
    """Return dense attention by backend: those of torch's SDPA that can take the inputs."""
    if q.device.type != "cuda":
        return {"dense sdpa": lambda: _sdpa(q, k, v, None)}
    functions: dict[str, Callable[[], object]] = {}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        try:
            _sdpa(q, k, v, backend)
        except RuntimeError:
            continue
        name = f"dense {backend.name.removesuffix('_ATTENTION').lower()}"
        functions[name] = partial(_sdpa, q, k, v, backend)
    return functions


def _sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend | None) -> Tensor:
    if backend is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def bench_case(
    case: KernelCase,
    impls: Sequence[Impl],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.bfloat16,
    repeats: int = 20,
) -> list[dict[str, Any]]:
    """Check and time implementations of one case beside dense attention.

    Returns:
        One row per implementation that supports the case; a row whose result is wrong has its
        ``rel_error`` and no times.
    """
    inputs = make_inputs(case, device, dtype)
    mask = inputs.planner()
    q, k, v = inputs.q, inputs.k, inputs.v
    entrants = contenders(case.bits, impls, (q, k, v), mask)
    errors = {
        impl: relative_error(inputs, mask, entrant.attend().out)
        for impl, entrant in entrants.items()
    }
    functions: dict[str, Callable[[], object]] = {}
    for impl, entrant in entrants.items():
        if errors[impl] <= entrant.largest_error:
            functions[impl.value] = entrant.attend
            if entrant.quantize is not None:
                functions["quantize"] = entrant.quantize
    functions = {**dense_functions(q, k, v), "plan": inputs.planner, **functions}
    times = time_interleaved(functions, device, repeats=repeats)
    density = float(mask.density())
    return [_row(case, impl, density, times, error) for impl, error in errors.items()]


def _row(
    case: KernelCase, impl: Impl, density: float, times: dict[str, Timing], error: float
) -> dict[str, Any]:
    backend = min(
        (name for name in times if name.startswith("dense")), key=lambda n: times[n].median_ms
    )
    dense_ms, plan_ms = times[backend].median_ms, times["plan"].median_ms
    row: dict[str, Any] = {
        "case": case.name,
        "impl": impl.value,
        "density": round(density, 4),
        "kernel_ms": None,
        "plan_ms": round(plan_ms, 4),
        "dense_ms": round(dense_ms, 4),
        "dense_backend": backend.removeprefix("dense "),
        "eff_tflops": None,
        "fraction_of_ideal": None,
        "rel_error": float(f"{error:.3g}"),
    }
    timing = times.get(impl.value)
    if timing is not None:
        flops = 4 * case.H * case.S**2 * case.D * density
        row |= {
            "kernel_ms": round(timing.median_ms, 4),
            "spread_ms": [round(timing.p20_ms, 4), round(timing.p80_ms, 4)],
            "eff_tflops": float(f"{flops / timing.median_ms / 1e9:.4g}"),
            "fraction_of_ideal": round(dense_ms * density / timing.median_ms, 3),
            "speedup": round(dense_ms / (timing.median_ms + plan_ms), 3),
        }
    if timing is not None and "quantize" in times:
        quantize_ms = times["quantize"].median_ms
        total_ms = timing.median_ms + quantize_ms
        row |= {
            "quantize_ms": round(quantize_ms, 4),
            "fraction_with_quantize": round(dense_ms * density / total_ms, 3),
            "speedup": round(dense_ms / (total_ms + plan_ms), 3),
        }
    return row


def run_once(cases: Sequence[KernelCase], impls: Sequence[Impl], device: torch.device) -> None:
    """Run each named case once, which compiles its kernels."""
    for case in {case.name: case for case in cases}.values():
        inputs = make_inputs(case, device, torch.bfloat16)
        qkv = (inputs.q, inputs.k, inputs.v)
        for entrant in contenders(case.bits, impls, qkv, inputs.planner()).values():
            entrant.attend()


def bench_rows(
    cases: Sequence[KernelCase], impls: Sequence[Impl], device: torch.device, *, repeats: int = 20
) -> Iterator[dict[str, Any]]:
    """Yield the rows of all cases as they are measured."""
    for case in cases:
        yield from bench_case(case, impls, device, repeats=repeats)


def default_cases(device: torch.device) -> tuple[KernelCase, ...]:
    """Return the cases made for a device."""
    return CPU_CASES if architecture(device) == "cpu" else GPU_CASES


def default_impls(device: torch.device) -> tuple[Impl, ...]:
    """Return the implementations made for a device."""
    return (Impl.TORCH,) if architecture(device) == "cpu" else (Impl.TRITON, Impl.GLUON)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay rows out in columns."""
    names = [
        "case", "impl", "density", "kernel_ms", "plan_ms", "dense_ms", "dense_backend",
        "eff_tflops", "fraction_of_ideal", "rel_error",
    ]  # fmt: skip
    cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _command(options: argparse.Namespace) -> str:
    """Return the command that repeats a run, without this machine's paths."""
    words = ["python", "-m", "vidsparse.profiling.bench", "--repeats", str(options.repeats)]
    for name in ("case", "impl"):
        for value in getattr(options, name) or ():
            words += [f"--{name}", value]
    return shlex.join([*words, "--json", options.json.name])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line, without vidsparse's own command."""
    parser = argparse.ArgumentParser(description="Time block-sparse kernels beside dense.")
    parser.add_argument("--case", action="append", help="case name, repeatable; default all")
    parser.add_argument("--impl", action="append", choices=[i.value for i in Impl])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="results file to write")
    parser.add_argument("--jobs", type=int, default=8, help="processes that compile, on a GPU")
    parser.add_argument("--compile-only", action="store_true", help="run each case once, untimed")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = default_cases(device)
    names = [case.name for case in known]
    for name in options.case or ():
        if name not in names:
            print_error(f"error: unknown case {name!r}; use {', '.join(names)}")
            return 2
    cases = [case for case in known if not options.case or case.name in options.case]
    impls = [Impl(name) for name in options.impl or ()] or default_impls(device)
    if options.compile_only:
        run_once(cases, impls, device)
        return 0
    if device.type == "cuda":
        compile_in_processes(cases, impls, options.jobs)
    rows: list[dict[str, Any]] = []
    for row in bench_rows(cases, impls, device, repeats=options.repeats):
        rows.append(row)
        sys.stdout.write(table(rows[-1:]).splitlines()[1] + "\n")
        sys.stdout.flush()
        if options.json:
            # Rewritten after every row: a crash in a later case loses nothing.
            document = {"meta": run_meta(device, _command(options)), "rows": rows}
            write_text(options.json, json.dumps(document, indent=1) + "\n")
    sys.stdout.write(table(rows) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
