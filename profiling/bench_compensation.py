"""Time attention with and without compensation on the same inputs, one after the other.

``python -m vidsparse.profiling.bench_compensation --out compensation.json`` on a GPU.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from vidsparse.kernels.block_means import key_value_means
from vidsparse.kernels.block_sparse_attention import (
    Impl,
    block_sparse_attention,
    unsupported_reasons,
)
from vidsparse.plan import AttentionPlan
from vidsparse.profiling.bench import Inputs, Mask, default_cases, default_impls, make_inputs
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.gate import check_sampled_rows
from vidsparse.profiling.kernel_cases import KernelCase
from vidsparse.profiling.rows import Row, RowFile, module_command, print_error
from vidsparse.profiling.timing import time_interleaved


def bench_compensation(
    case: KernelCase,
    device: torch.device,
    *,
    impls: Sequence[Impl] | None = None,
    repeats: int = 15,
    on_skip: Callable[[str], None] = lambda reason: None,
) -> Iterator[Row]:
    """Check and time each implementation of one case with and without compensation.

    Args:
        case: shape and density; 16 bits.
        device: where to run.
        impls: implementations; by default those made for the device.
        repeats: timed runs of each.
        on_skip: called with the reason when an implementation cannot take the case.

    Yields:
        ``{case, impl, heads, density, requested_density, kernel_ms, compensated_ms, means_ms,
        extra_fraction}``: ``compensated_ms`` includes the block means, which ``means_ms`` gives
        alone, and ``extra_fraction`` is what compensation adds to ``kernel_ms``.

    Raises:
        AssertionError: an output is wrong; no time is given then.
    """
    inputs = make_inputs(case, device, torch.bfloat16)
    mask = inputs.planner()
    for impl in impls or default_impls(device):
        reasons = unsupported_reasons(impl, inputs.q, inputs.k, inputs.v, mask)
        if reasons:
            on_skip(f"{case.name}, {impl.value}: {'; '.join(reasons)}")
            continue
        _check(inputs, mask, impl)
        yield _row(case, impl, float(mask.density()), _times(inputs, mask, impl, repeats))


def _times(inputs: Inputs, mask: Mask, impl: Impl, repeats: int) -> dict[str, float]:
    q, k, v = inputs.q, inputs.k, inputs.v
    attend = partial(block_sparse_attention, q, k, v, mask, impl=impl)
    functions: dict[str, Callable[[], object]] = {
        "plain": attend,
        "compensated": partial(attend, compensate=True),
        "means": partial(key_value_means, k, v, mask),
    }
    times = time_interleaved(functions, q.device, repeats=repeats)
    return {name: timing.median_ms for name, timing in times.items()}


def _row(case: KernelCase, impl: Impl, density: float, times: dict[str, float]) -> Row:
    return {
        "case": case.name,
        "impl": impl.value,
        "heads": case.H,
        "density": round(density, 4),
        "requested_density": case.density,
        "kernel_ms": round(times["plain"], 4),
        "compensated_ms": round(times["compensated"], 4),
        "means_ms": round(times["means"], 4),
        "extra_fraction": round(times["compensated"] / times["plain"] - 1, 4),
    }


def _check(inputs: Inputs, mask: Mask, impl: Impl) -> None:
    q, k, v = inputs.q, inputs.k, inputs.v
    for compensate in (False, True):
        output = block_sparse_attention(q, k, v, mask, impl=impl, compensate=compensate)
        plan = AttentionPlan(mask, compensate=compensate)
        check_sampled_rows(q, k, v, plan, output, heads=2)


def main(arguments: list[str] | None = None) -> int:
    """Run the bench from the command line."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    keep = RowFile(
        options.out,
        run_meta(device, module_command("vidsparse.profiling.bench_compensation")),
        append=options.append,
    )
    for case in _cases(options, device):
        rows = bench_compensation(
            case,
            device,
            impls=[Impl(name) for name in options.impls.split(",")] if options.impls else None,
            repeats=options.repeats,
            on_skip=lambda reason: print_error(f"skipped: {reason}"),
        )
        for row in rows:
            keep(row)
    return 0


def _cases(options: argparse.Namespace, device: torch.device) -> list[KernelCase]:
    known = [c for c in default_cases(device) if c.bits == 16 and c.density < 1]
    names = options.cases.split(",") if options.cases else [c.name for c in known]
    cases = [c for c in known if c.name in names]
    wanted = [float(text) for text in options.densities.split(",")] if options.densities else None
    cases = [c for c in cases if wanted is None or c.density in wanted]
    return [replace(c, H=options.heads or c.H) for c in cases]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.bench_compensation")
    parser.add_argument("--cases", help="kernel cases, by default all of 16 bits below density 1")
    parser.add_argument("--densities", help="of these cases only those")
    parser.add_argument("--impls", help="by default those made for the device")
    parser.add_argument("--heads", type=int, help="instead of the cases' own number")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the rows --out already has")
    return parser


if __name__ == "__main__":
    sys.exit(main())
