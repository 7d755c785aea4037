"""Time single calls of a method part by part, with a dense call beside each."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vidsparse.attention import attend_and_learn, attend_in_order, run_plan
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.profiling.bench import dense_functions
from vidsparse.profiling.clock import Clock
from vidsparse.profiling.gate import check_sampled_rows
from vidsparse.profiling.rows import Row
from vidsparse.profiling.synthetic import video_qkv
from vidsparse.profiling.timing import time_interleaved

# A run as the papers' are: 50 steps, the first fifth dense.
NUM_STEPS, FIRST_SPARSE_STEP = 50, 10

_PARTS = ("permute", "kernel", "restore", "dense", "without means")


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


class TimedCalls:
    """Call a method as ``SparseAttention`` does, with marks between the parts.

    Args:
        case: shape of the tokens, which are the same at every step.
        method: what plans.
        device: where to run.
    """

    def __init__(self, case: MethodCase, method: SparseMethod, device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._case, self._method, self._device = case, method, device
        self._qkv = video_qkv(case.layout, case.batch, case.heads, case.head_size, device, dtype)
        self._dense = _fastest_dense(*self._qkv)
        self._second_state = method.init_state()

    def time(self, step: int, state: Any, *, check: bool = False) -> tuple[Clock, Tensor | None]:
        """Make one call and a dense one.

        Args:
            step: denoising step, of 50.
            state: the method's.
            check: compare what the plan gives with attention under its mask first.

        Returns:
            The clock with its marks, and the plan's density on the device; None for a dense call.

        Raises:
            AssertionError: the output is wrong.
        """
        clock = Clock(self._device)
        plan = self._call(step, state, clock)
        if check and plan is not None:
            # Once more: what the call gave may be an anchor's dense output, or corrected.
            check_sampled_rows(*self._qkv, plan, run_plan(*self._qkv, plan))
        clock.mark("rest")
        self._dense()
        clock.mark("dense")
        if plan is not None and plan.compensate:
            self._call_without_means(plan, step, clock)
        return clock, None if plan is None else plan.density()

    def _call_without_means(self, plan: AttentionPlan, step: int, clock: Clock) -> None:
        """Attend under the same mask between the same work: a GPU's clock follows its load."""
        tokens = plan.in_order(*self._qkv)
        self._method.decide(*self._qkv, self._case.layout, _site(step), self._second_state)
        clock.mark("rest")
        attend_in_order(*tokens, replace(plan, compensate=False, tangents=None))
        clock.mark("without means")
        self._dense()
        clock.mark("rest")

    def _call(self, step: int, state: Any, clock: Clock) -> AttentionPlan | None:
        site = _site(step)
        plan = self._method.decide(*self._qkv, self._case.layout, site, state)
        clock.mark("plan")
        if plan is not None:
            attend_and_learn(self._method, plan, *self._qkv, site, state, mark=clock.mark)
        return plan


def _site(step: int) -> CallSite:
    return CallSite("transformer", 1, 2, step, NUM_STEPS, 1 - step / NUM_STEPS, 0, 0)


def part_times(clocks: list[Clock]) -> dict[str, float]:
    """Return ms per part: medians, but ``plan_ms`` a mean, so that rare plans are charged in full.

    What a method learns from an output is part of its planning. ``compensation_ms`` is the part of
    ``kernel_ms`` that the same mask takes no longer without compensation.
    """
    times = [clock.milliseconds() for clock in clocks]
    median = {part: statistics.median(t.get(part, 0.0) for t in times) for part in _PARTS}
    compensated = any("without means" in t for t in times)
    return {
        "plan_ms": statistics.fmean(t["plan"] + t.get("observe", 0.0) for t in times),
        "permute_ms": median["permute"] + median["restore"],
        "kernel_ms": median["kernel"],
        "compensation_ms": median["kernel"] - median["without means"] if compensated else 0.0,
        "dense_ms": median["dense"],
    }


def timed_row(first: Row, times: dict[str, float]) -> Row:
    """Complete a row with its times and what follows from them.

    ``overhead_fraction`` is all but attention to kept blocks: plan, permutation, compensation.
    """
    total = times["plan_ms"] + times["permute_ms"] + times["kernel_ms"]
    overhead = total - times["kernel_ms"] + times["compensation_ms"]
    return {
        **first,
        "plan_ms": round(times["plan_ms"], 3),
        "permute_ms": round(times["permute_ms"], 3),
        "kernel_ms": round(times["kernel_ms"], 3),
        "compensation_ms": round(times["compensation_ms"], 3),
        "total_ms": round(total, 3),
        "dense_ms": round(times["dense_ms"], 3),
        "overhead_fraction": round(overhead / times["dense_ms"], 4),
        "attention_speedup": round(times["dense_ms"] / total, 3),
    }


def _fastest_dense(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    functions = dense_functions(q, k, v)
    times = time_interleaved(functions, q.device, repeats=3, warmup_ms=1.0)
    return functions[min(functions, key=lambda name: times[name].median_ms)]
