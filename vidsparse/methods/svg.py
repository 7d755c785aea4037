"""Sparse VideoGen: every head is spatial or temporal, found online from a few query rows."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.launch import preferred_blocks
from vidsparse.kernels.sampled_rows import attend_sampled_rows
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SearchRange, SparseMethod, register
from vidsparse.methods.random_blocks import site_generator
from vidsparse.methods.svg_masks import SINKS, HeadMasks, Sink, head_masks
from vidsparse.plan import AttentionPlan, CallSite

HeadType = Literal["profiled", "spatial", "temporal"]
HEAD_TYPES: tuple[HeadType, ...] = ("profiled", "spatial", "temporal")


@dataclass
class SVGState:
    """The last decision of one layer and branch.

    Attributes:
        temporal: (B, H) bool, True where a head is temporal.
        errors: (2, B, H) float32 mean squared errors, spatial and temporal.
        step: when it was taken.
    """

    temporal: Tensor | None = None
    errors: Tensor | None = None
    step: int = 0


@register
@dataclass(frozen=True)
class SVG(SparseMethod):
    """Attend to neighbouring frames or to the same pixel over time, whichever errs less.

    ``plan(...).moved_heads`` holds the decisions of a call; ``WatchedSVG`` collects them.

    Attributes:
        density: kept share of query-key pairs, text and first frame included, in (0, 1].
        rows: query rows sampled per call to compare both masks, at least 1.
        decide_every: steps between decisions; 1 decides at every call, 0 once per generation.
        heads: "profiled", or force all heads to be "spatial" or "temporal".
        sink: "frame" always keeps the first frame, "positions" the first positions of either
            order as the original does, "none" neither.
        seed: chooses the sampled rows.
        blocks: (query, key) tokens per block; None takes the kernels' choice.

    Raises:
        UsageError: a parameter is out of range.
    """

    name: ClassVar[str] = "svg"
    summary: ClassVar[str] = "spatial and temporal heads, found online from sampled rows"
    source: ClassVar[str] = "Sparse VideoGen, arXiv:2502.01776"

    rows: int = 64
    decide_every: int = 1
    heads: HeadType = "profiled"
    sink: Sink = "frame"
    seed: int = 0
    blocks: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 1:
            raise UsageError(f"rows={self.rows} must be at least 1, the usual value is 64")
        if self.decide_every < 0:
            raise UsageError(f"decide_every={self.decide_every} must be at least 0, a step count")
        if self.heads not in HEAD_TYPES:
            raise UsageError(f"heads={self.heads!r} is unknown; use one of {HEAD_TYPES}")
        if self.sink not in SINKS:
            raise UsageError(f"sink={self.sink!r} is unknown; use one of {SINKS}")

    def init_state(self) -> SVGState:
        """Return a state without a decision."""
        return SVGState()

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Decide each head's type, then give it the order and the mask of its type."""
        if self.density == 1:
            return None
        blocks = self.blocks or preferred_blocks(q.device)
        masks = head_masks(layout, blocks, self.density, self.sink, q.device)
        if self.heads == "profiled" and not masks.same:
            return typed_plan(masks, self._profiled(q, k, v, masks, site, state))
        all_temporal = self.heads == "temporal" and not masks.same
        temporal = torch.full((1, 1), all_temporal, device=q.device)
        state.temporal = temporal.expand(q.shape[:2])
        if all_temporal:
            return typed_plan(masks, temporal)
        return AttentionPlan(masks.block_mask(temporal), moved_heads=temporal)

    def search_space(self) -> dict[str, SearchRange]:
        """Vary the density and how often heads are profiled."""
        return {
            "density": SearchRange((0.15, 0.2, 0.25, 0.3, 0.4, 0.5)),
            "decide_every": SearchRange((0, 5, 1)),
        }

    def _profiled(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        masks: HeadMasks,
        site: CallSite,
        state: SVGState,
    ) -> Tensor:
        if state.temporal is not None and not self._due(site.step - state.step):
            return state.temporal
        rows = sample_rows(self.rows, q.shape[2], site_generator(site, self.seed, q.device))
        state.errors = profile_errors(q, k, v, masks, rows)
        # A tie is spatial: those heads need no permutation.
        state.temporal = state.errors[1] < state.errors[0]
        state.step = site.step
        return state.temporal

    def _due(self, steps: int) -> bool:
        return self.decide_every == 1 or 1 < self.decide_every <= steps


@dataclass(frozen=True)
class WatchedSVG(SVG):
    """SVG that also writes down what it decides, for ``vidsparse profile --heads``.

    Attributes:
        decisions: (site, (B, H) bool on the device, True where temporal) of each planned call,
            in order; reading one waits for the device.
    """

    decisions: list[tuple[CallSite, Tensor]] = field(
        default_factory=list, compare=False, repr=False
    )

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Plan as SVG does and keep the decision."""
        plan = super().plan(q, k, v, layout, site, state)
        if plan is not None and plan.moved_heads is not None:
            self.decisions.append((site, plan.moved_heads.expand(q.shape[:2])))
        return plan


def sample_rows(count: int, num_tokens: int, generator: torch.Generator) -> Tensor:
    """Draw one query row from each of ``count`` equal parts of the sequence.

    Every row is equally likely, and every frame is seen when there are at least as many rows.

    Args:
        count: R, at most S.
        num_tokens: S.
        generator: the source of chance; its device is the result's.

    Returns:
        (R,) int64, ascending.

    Raises:
        UsageError: there are more rows than tokens.
    """
    if count > num_tokens:
        raise UsageError(f"rows={count} exceeds the {num_tokens} tokens; sample at most as many")
    device = generator.device
    chance = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    rows = (torch.arange(count, device=device) + chance) * (num_tokens / count)
    return rows.long().clamp_(max=num_tokens - 1)


def profile_errors(q: Tensor, k: Tensor, v: Tensor, masks: HeadMasks, rows: Tensor) -> Tensor:
    """Compare both masks with full attention on sampled rows.

    Args:
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        v: (B, H, S, D) values.
        masks: the candidates, exactly as they are executed.
        rows: (R,) int64 natural query rows.

    Returns:
        (2, B, H) float32 mean squared error over rows and D; spatial, temporal.

    Source: SVG, arXiv:2502.01776, section 4.1, algorithm 1.
    """
    queries = q.index_select(2, rows)
    full, *sparse = attend_sampled_rows(queries, k, v, masks.rows(rows)).unbind(0)
    return torch.stack([(part - full).square().mean((-1, -2)) for part in sparse])


def typed_plan(masks: HeadMasks, temporal: Tensor) -> AttentionPlan:
    """Give every head the order and mask of its type, without waiting for the device.

    Args:
        masks: both candidates.
        temporal: (B | 1, H | 1) bool.
    """
    choose = temporal[..., None]
    q_order = torch.where(choose, masks.q_orders[1], masks.q_orders[0])
    kv_order = torch.where(choose, masks.kv_orders[1], masks.kv_orders[0])
    return AttentionPlan(masks.block_mask(temporal), q_order, kv_order, moved_heads=temporal)
