"""Time functions against one another: interleaved, cold caches, medians with their spread."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

# Larger than the L2 of any GPU here, and than the last-level cache of most CPUs.
_FLUSH_BYTES = 256 << 20
# About 2 ms on any current GPU: longer than the host needs to queue what is timed here.
_LEAD_CYCLES = 3_500_000


@dataclass(frozen=True)
class Timing:
    """Time of one function.

    Args:
        median_ms: median over the repeats.
        p20_ms: 20th percentile.
        p80_ms: 80th percentile.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    repeats: int = 20,
    warmup_ms: float = 200.0,
    flush: bool = True,
) -> dict[str, Timing]:
    """Time functions in turn, so that a drift of the clock falls on all of them alike.

    Turns go forwards and backwards: after a long kernel a GPU at its power limit has a slower
    clock, which would fall on the same neighbour every time.

    Args:
        functions: what to time, by name.
        device: where they run.
        repeats: runs of each function.
        warmup_ms: least time spent on warming up each function, by the wall clock; a GPU's clock
            settles meanwhile.
        flush: empty the caches before each run by writing a large buffer.
    """
    run = _time_cuda if device.type == "cuda" else _time_cpu
    for function in functions.values():
        run(function)
        # Not by the function's own time: what takes microseconds would run ten thousand times.
        end = time.perf_counter() + warmup_ms / 1e3
        while time.perf_counter() < end:
            run(function)
    size = _FLUSH_BYTES if flush and device.type == "cuda" else 1
    buffer = torch.empty(size, dtype=torch.int8, device=device)
    samples: dict[str, list[float]] = {name: [] for name in functions}
    turn = list(functions)
    for _ in range(repeats):
        for name in turn:
            buffer.zero_()
            samples[name].append(run(functions[name]))
        turn.reverse()
    return {name: _summary(times) for name, times in samples.items()}


def _time_cuda(function: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # Inside a model the host queues work ahead: a busy GPU keeps launch times out of the figure.
    torch.cuda._sleep(_LEAD_CYCLES)
    start.record()
    function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _time_cpu(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def _summary(times: list[float]) -> Timing:
    spread = torch.quantile(torch.tensor(times), torch.tensor([0.5, 0.2, 0.8]))
    return Timing(*spread.tolist())
