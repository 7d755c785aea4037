"""One dense generation under observation: time of its attention, and a look at some calls."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vidsparse.generate import Clip, OnStep, Sampling, sample, transformers_of
from vidsparse.layout import VideoLayout
from vidsparse.pipelines.attach import Attachment, attach
from vidsparse.pipelines.layers import DenseCounter, DenseOp
from vidsparse.plan import CallSite
from vidsparse.profiling.recorder import CallRecorder

# Steps that are looked at, as shares of the generation.
LOOK_AT = (0.1, 0.35, 0.6, 0.85)


@dataclass(frozen=True)
class Look:
    """One dense attention call: q, k, v and its output (1, H, S, D), in natural order."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    layout: VideoLayout
    site: CallSite


class Looker(Protocol):
    """Takes statistics of a call and keeps nothing of its size."""

    def look(self, call: Look) -> None:
        """Take them."""


class Stopwatch:
    """Adds up stretches of work on a device; waits for it only when the sum is read."""

    def __init__(self) -> None:
        self._spans: list[tuple[Any, Any]] = []

    @staticmethod
    def now(device: torch.device) -> Any:
        """Return a mark on the device's timeline."""
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, start: Any, end: Any) -> None:
        """Count the stretch between two marks."""
        self._spans.append((start, end))

    def seconds(self) -> float:
        """Return the sum."""
        return sum(span_seconds(start, end) for start, end in self._spans)

    def __len__(self) -> int:
        return len(self._spans)


def span_seconds(start: Any, end: Any) -> float:
    """Return the seconds between two marks of ``Stopwatch.now``; waits for the device."""
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


@dataclass
class ObservedAttention:
    """Stay dense, time what is not looked at, and show a few calls to the lookers.

    Attributes:
        lookers: what takes statistics.
        look_at: steps looked at, as shares of the generation.
        attention: time of the dense calls in forwards that nobody looked at.
        forwards: time of those forwards.
        layout: of the last call.
        branches: forwards of one step.
        calls: attention calls of the generation.
        heads: H of the last call.
        head_dim: D of the last call.
        dtype: of the last call.
    """

    lookers: Sequence[Looker] = ()
    look_at: tuple[float, ...] = LOOK_AT
    recorder: DenseCounter = field(default_factory=CallRecorder)
    attention: Stopwatch = field(default_factory=Stopwatch)
    forwards: Stopwatch = field(default_factory=Stopwatch)
    layout: VideoLayout | None = None
    branches: int = 1
    calls: int = 0
    heads: int = 0
    head_dim: int = 0
    dtype: torch.dtype = torch.float32

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        layout: VideoLayout,
        site: CallSite,
        dense: DenseOp,
    ) -> Tensor:
        """Attend densely: (B, H, S, D) in and out."""
        self.layout, self.calls = layout, self.calls + 1
        self.heads, self.head_dim, self.dtype = q.shape[1], q.shape[3], q.dtype
        self.branches = max(self.branches, site.branch + 1)
        self.recorder.record_dense("observed", site)
        if not self.looks_at(site):
            start = Stopwatch.now(q.device)
            out = dense(q, k, v)
            self.attention.add(start, Stopwatch.now(q.device))
            return out
        out = dense(q, k, v)
        if site.branch == 0:
            self._show(q, k, v, out, layout, site)
        return out

    def looks_at(self, site: CallSite) -> bool:
        """Say whether a call's step is looked at: its forwards are not timed."""
        return self.looks_at_step(site.step, site.num_steps)

    def looks_at_step(self, step: int, num_steps: int | None) -> bool:
        """Say whether a step is looked at; never without lookers."""
        total = num_steps or 1
        return bool(self.lookers) and step in {math.floor(share * total) for share in self.look_at}

    def reset(self) -> None:
        """Forget nothing: there is no state between calls."""

    def _show(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, layout: VideoLayout, site: CallSite
    ) -> None:
        q, k, v, out = (x[:1] for x in (q, k, v, out))
        if layout.text_valid is not None:
            layout = layout.without_padding(layout.text_valid[0])
            q, k, v, out = (x[:, :, : layout.num_tokens] for x in (q, k, v, out))
        call = Look(q, k, v, out, layout, site)
        for looker in self.lookers:
            looker.look(call)


def observe(
    pipe: Any,
    attention: ObservedAttention,
    prompt: str,
    sampling: Sampling,
    *,
    seed: int,
    on_step: OnStep | None = None,
) -> Clip:
    """Generate one clip densely under observation.

    Args:
        pipe: a diffusers text-to-video pipeline with nothing attached.
        attention: what observes; it is filled.
        prompt: what the video shows.
        sampling: options.
        seed: of the initial noise.
        on_step: called after each step.

    Returns:
        The clip; its times include the looking.
    """
    attachment = attach(pipe, attention)
    hooks = [hook for m in transformers_of(pipe) for hook in _timed(m, attention, attachment)]
    try:
        return sample(pipe, prompt, sampling, seed=seed, on_step=on_step)
    finally:
        for hook in hooks:
            hook.remove()
        attachment.detach()


def _timed(module: Any, attention: ObservedAttention, attachment: Attachment) -> list[Any]:
    started: list[Any] = []

    def begin(module: torch.nn.Module, args: Any) -> None:
        started.append(Stopwatch.now(next(module.parameters()).device))

    def end(module: torch.nn.Module, args: Any, output: Any) -> None:
        start, tracker = started.pop(), attachment.tracker
        if not attention.looks_at_step(tracker.step, tracker.num_steps):
            attention.forwards.add(start, Stopwatch.now(next(module.parameters()).device))

    return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
