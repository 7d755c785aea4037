"""Time methods whose steps differ: each kind of step by itself, and a whole run of them."""

import torch

from vidsparse.methods.base import Phase
from vidsparse.profiling.clock import Clock
from vidsparse.profiling.method_spec import parse_method
from vidsparse.profiling.rows import Row
from vidsparse.profiling.timed_calls import (
    FIRST_SPARSE_STEP,
    NUM_STEPS,
    MethodCase,
    TimedCalls,
    part_times,
    timed_row,
)

Times = dict[str, float]


def bench_phases(
    case: MethodCase, spec: str, density: float, *, device: torch.device, repeats: int = 7
) -> list[Row]:
    """Time steps of each phase of a run, over runs with fresh states.

    Phases that search are run whole, since later ones build on all their steps; of others the
    first step stands for all.

    Args:
        case: shape.
        spec: a method with phases.
        density: requested.
        device: where to run.
        repeats: runs timed.

    Returns:
        A row per phase, with its name as ``phase`` and its number of ``steps`` in a run of 50,
        then one with the phase "run": means over all sparse steps. Its ``search_fraction`` is the
        planning of all searches, in dense attention calls of the run's 50 steps;
        ``search_fraction_with_steps`` adds what a search's own step attends to beyond what a step
        without a search does.

    Raises:
        AssertionError: an output is not attention under its plan's mask; no time is given then.
    """
    method = parse_method(spec, density)
    phases = [p for p in method.phases(NUM_STEPS, FIRST_SPARSE_STEP) if p.steps]
    chosen = {p.name: p.steps if p.searches else p.steps[:1] for p in phases}
    steps = sorted(step for some in chosen.values() for step in some)
    calls = TimedCalls(case, method, device)
    clocks: dict[int, list[Clock]] = {step: [] for step in steps}
    kept: dict[int, float] = {}
    for run in range(-1, repeats):
        state = method.init_state()
        for step in steps:
            clock, dense_or_kept = calls.time(step, state, check=run == -1)
            if run >= 0:
                clocks[step].append(clock)
            kept[step] = 1.0 if dense_or_kept is None else float(dense_or_kept)
    times = {
        name: part_times([clock for step in some for clock in clocks[step]])
        for name, some in chosen.items()
    }
    first: Row = {"case": case.name, "method": spec, "requested_density": density}
    first["compensate"] = method.compensate
    rows = [_phase_row(first, p, kept[p.steps[0]], times[p.name]) for p in phases]
    return [*rows, _run_row(first, phases, kept, times)]


def _phase_row(first: Row, phase: Phase, kept: float, times: Times) -> Row:
    first = {**first, "phase": phase.name, "steps": len(phase.steps), "density": round(kept, 4)}
    return timed_row(first, times)


def _run_row(
    first: Row, phases: list[Phase], kept: dict[int, float], times: dict[str, Times]
) -> Row:
    counts = {p.name: len(p.steps) for p in phases}
    total = sum(counts.values())
    mean = {
        part: sum(counts[name] * times[name][part] for name in counts) / total
        for part in next(iter(times.values()))
    }
    density = sum(len(p.steps) * kept[p.steps[0]] for p in phases) / total
    run = Phase("run", tuple(range(total)))
    searches = [p.name for p in phases if p.searches]
    plain = [p.name for p in phases if not p.searches]
    planning = sum(counts[name] * times[name]["plan_ms"] for name in searches)
    row = _phase_row(first, run, density, mean)
    row["search_fraction"] = round(planning / (NUM_STEPS * mean["dense_ms"]), 4)
    if plain:
        least = min(_work(times[name]) for name in plain)
        beyond = sum(counts[name] * (_work(times[name]) - least) for name in searches)
        row["search_fraction_with_steps"] = round(beyond / (NUM_STEPS * mean["dense_ms"]), 4)
    return row


def _work(times: Times) -> float:
    return times["plan_ms"] + times["permute_ms"] + times["kernel_ms"]
