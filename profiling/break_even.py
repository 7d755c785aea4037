"""From how many tokens on a method is faster than dense attention on this device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidsparse.attention import attend_and_learn, dense_attention
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod, build_method
from vidsparse.plan import CallSite
from vidsparse.profiling.amdahl import crossing
from vidsparse.profiling.timing import time_interleaved

# Frames and sides of the grids timed, as shares of the model's own.
_SCALES = (0.125, 0.25, 0.5, 1.0)
_LEAST_TOKENS = 256
_SITE = CallSite("transformer", 0, 1, 10, 50, 0.5, 0, 0)


@dataclass(frozen=True)
class BreakEven:
    """Times of one method over token counts.

    Attributes:
        method: name.
        density: asked for.
        tokens: counts timed, rising.
        dense_ms: of dense attention at each.
        sparse_ms: of plan, permutation and kernel at each, median.
        break_even: tokens from which on sparse is faster; None when it never is up to the
            model's own count.
        refused: counts that the method refuses at this density.
        why: the last refusal; None without any.
    """

    method: str
    density: float
    tokens: tuple[int, ...]
    dense_ms: tuple[float, ...]
    sparse_ms: tuple[float, ...]
    break_even: int | None
    refused: tuple[int, ...] = ()
    why: str | None = None

    def line(self) -> str:
        """Return the result for people."""
        if self.break_even is None:
            where = f"not faster than dense up to {self.tokens[-1]} tokens"
        else:
            where = f"faster than dense from {self.break_even} tokens on"
        gain = self.dense_ms[-1] / self.sparse_ms[-1]
        line = (
            f"{self.method} at density {self.density:g} is {where}; "
            f"{gain:.2f}x per call at {self.tokens[-1]}"
        )
        if not self.refused:
            return line
        counts = ", ".join(map(str, self.refused))
        return f"{line}; not measured at {counts} tokens: {self.why}"


def break_even(
    name: str,
    layout: VideoLayout,
    *,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    density: float = 0.25,
    repeats: int = 10,
) -> BreakEven:
    """Time a method with its defaults, on random tokens of grids up to the model's own.

    Args:
        name: the method.
        layout: of the model.
        heads: H.
        head_dim: D.
        dtype: of the model.
        device: where it runs.
        density: kept share of query-key pairs.
        repeats: timed runs of each.

    Raises:
        UsageError: the method cannot run at this density on any of the grids.
    """
    method = build_method(name, {"density": density})
    tokens, dense_ms, sparse_ms, refused, why = [], [], [], [], None
    for grid in smaller_layouts(layout):
        q, k, v = _random(grid, heads, head_dim, dtype, device)
        try:
            times = _times(method, q, k, v, grid, repeats)
        except UsageError as error:
            refused.append(grid.num_tokens)
            why = str(error)
            continue
        tokens.append(grid.num_tokens)
        dense_ms.append(times[0])
        sparse_ms.append(times[1])
    if not tokens:
        raise UsageError(str(why))
    found = crossing(tokens, dense_ms, sparse_ms)
    times_of = (tuple(tokens), tuple(dense_ms), tuple(sparse_ms))
    return BreakEven(name, density, *times_of, found, tuple(refused), why)


def smaller_layouts(layout: VideoLayout) -> list[VideoLayout]:
    """Return layouts with fewer frames, and last the model's own.

    None of a video has a single frame: methods treat a picture as another case.
    """
    least = min(2, layout.frames)
    counts = sorted({max(least, round(scale * layout.frames)) for scale in _SCALES})
    made = [replace(layout, frames=frames, text_valid=None) for frames in counts]
    return [one for one in made if one.num_tokens >= _LEAST_TOKENS] or [made[-1]]


def _random(
    layout: VideoLayout, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Sequence[Tensor]:
    make = torch.Generator(device).manual_seed(0)
    shape = (1, heads, layout.num_tokens, head_dim)
    return [
        torch.randn(shape, generator=make, device=device, dtype=torch.float32).to(dtype)
        for _ in range(3)
    ]


def _times(
    method: SparseMethod, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, repeats: int
) -> tuple[float, float]:
    state, steps = method.init_state(), iter(range(10_000))

    def sparse() -> None:
        site = replace(_SITE, step=10 + next(steps) % 30)
        plan = method.decide(q, k, v, layout, site, state)
        if plan is None:
            dense_attention(q, k, v)
            return
        attend_and_learn(method, plan, q, k, v, site, state)

    both = {"dense": lambda: dense_attention(q, k, v), "sparse": sparse}
    found = time_interleaved(both, q.device, repeats=repeats, warmup_ms=20.0)
    return found["dense"].median_ms, found["sparse"].median_ms
