"""Time whole methods against dense attention: planning, permutation and kernel apart.

``python -m vidsparse.profiling.bench_methods --out results.json`` on a GPU.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.profiling.bench_phases import bench_phases
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.method_spec import parse_method, split_methods
from vidsparse.profiling.rows import Row, RowFile, module_command, print_error
from vidsparse.profiling.timed_calls import (
    FIRST_SPARSE_STEP,
    NUM_STEPS,
    MethodCase,
    TimedCalls,
    part_times,
    timed_row,
)

# A method's first sparse calls (searches, first clustering) are no steady state.
_FIRST_CALLS = 3

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
        mean, so that plans that serve several steps are charged in full. A method whose steps
        differ gives a row for each of its phases and one for a whole run; see ``bench_phases``.

    Raises:
        AssertionError: an output is wrong; its time is not given.
    """
    for case, method, density in itertools.product(cases, methods, densities):
        try:
            if parse_method(method, density).phases(NUM_STEPS, FIRST_SPARSE_STEP):
                yield from bench_phases(case, method, density, device=device, repeats=repeats)
            else:
                yield bench_method(case, method, density, device=device, repeats=repeats)
        except UsageError as error:
            on_skip(f"{case.name}, {method} at density {density}: {error}")


def bench_method(
    case: MethodCase, spec: str, density: float, *, device: torch.device, repeats: int = 7
) -> Row:
    """Time one method's steady state at one density; see ``bench_methods``.

    Raises:
        AssertionError: the output is not attention under the plan's mask; no time is given then.
    """
    method = parse_method(spec, density)
    calls, state = TimedCalls(case, method, device), method.init_state()
    steps = range(FIRST_SPARSE_STEP, FIRST_SPARSE_STEP + _FIRST_CALLS + repeats)
    clocks = []
    for step in steps:
        timed = step >= steps[_FIRST_CALLS]
        clock, kept = calls.time(step, state, check=step == steps[_FIRST_CALLS - 1])
        clocks += [clock] * timed
    first = {
        "case": case.name,
        "method": spec,
        "density": 1.0 if kept is None else round(float(kept), 4),
        "requested_density": density,
        "compensate": method.compensate,
    }
    return timed_row(first, part_times(clocks))


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
    try:
        cases = [_case(name) for name in options.cases.split(",")]
    except UsageError as error:
        print_error(f"error: {error}")
        return 2
    densities = [float(text) for text in options.densities.split(",")]
    methods = split_methods(options.methods)
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
