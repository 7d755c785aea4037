"""Our own method: skip what compensation represents well, attend to what it would get wrong.

What was tried, as relative output error on captured calls of tiny (cpu grid, 5 calls, 3 heads;
density 0.25 / 0.125). The hard-mask oracle leaves 0.222 / 0.386, compensated 0.115 / 0.183.

- Blocks of 64 x 64 tokens by frames x rows x columns: 1x8x8 0.088 / 0.159, 2 frames 0.065 / 0.112,
  3 frames 0.054 / 0.094, 5 frames 0.053 / 0.092; of 128 x 128: 1 frame 0.146 / 0.228, 3 frames
  0.095 / 0.155, 5 frames 0.087 / 0.138. Compact in time as in space is what counts most.
- Key blocks, queries in 128: 128 0.087 / 0.138, 64 0.067 / 0.112, 32 0.059 / 0.100. Each halving
  doubles the cost of compensation: 1.0 % of dense attention for 128 keys of 75600, 1.8 % for 64.
- Means: plain 0.056 / 0.093, at one tangent for the head 0.043 / 0.075, at tangents of the queries
  that skip a block 0.042 / 0.072; three plain means per block are worth a head's tangent. A Jensen
  term in the weight of a mean does harm (0.20 for 0.13) with independent channels, and nothing when
  it is exact for the mean query of a block.
- Budget: flat 0.045 / 0.079, row 0.045 / 0.088, one for all heads 0.051 / 0.091.
- The blocks of one or two steps ago serve as well as new ones (0.041 for 0.041).
- The first layer, with twice the density at an equal mean: the whole model's error in one forward,
  relative to its output, falls from 0.060 to 0.038 (64 x 32 blocks) and from 0.121 to 0.083
  (128 x 64), where the hard-mask oracle leaves 0.135; with three times 0.036 and 0.100.
- What ``block_error`` and ``anchors`` say about scores and errors of earlier steps.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.launch import preferred_blocks
from vidsparse.layout import VideoLayout
from vidsparse.methods.anchors import Anchor
from vidsparse.methods.base import Phase, SearchRange, SparseMethod, register
from vidsparse.methods.block_error import (
    block_moments,
    estimated_scores,
    tangents,
)
from vidsparse.methods.blocks import BlockGeometry, strip_geometry
from vidsparse.methods.budget import Budget
from vidsparse.methods.windows import choose_frames, choose_strips
from vidsparse.plan import AttentionPlan, CallSite

ErrorBudget = Literal["flat", "row", "top_p"]
BUDGETS: tuple[ErrorBudget, ...] = ("flat", "row", "top_p")


@register
@dataclass(frozen=True)
class Compensated(SparseMethod):
    """Keep the blocks that means cannot stand for; let the others count through their means.

    Blocks are compact pieces of space and time, in which keys and values vary least. A few pooled
    queries per block attend to the mean keys; the mass that they find, times how far logits and
    values vary within a key block, ranks the block pairs. Skipped blocks count through means that
    are exact at the mean of the queries that skip them (``tangents``). Without anchors it keeps no
    state: step caches, few-step models and any form of guidance suit it.

    Attributes:
        density: kept share of query-key pairs, text and own blocks included, in (0, 1], the mean
            over the layers; the least share of each row for the budget "top_p".
        budget: "flat" ranks all blocks of a head, "row" those of each query block, "top_p" keeps a
            share ``p`` of each query block's estimated error.
        p: share of a row's error for "top_p", in [0, 1].
        rank: "error" ranks by what compensation would get wrong, "mass" by attention mass.
        tangents: take means as the queries that skip a block weigh its keys; else plain means.
        frames: frames that a block reaches over; None makes blocks about as deep as wide.
        blocks: (query, key) tokens per block; None asks the kernels. Finer key blocks compensate
            better and cost more.
        anchor_every: 0 keeps no state. n attends densely as well at every n-th step, a dense call,
            keeps what compensation got wrong and adds it to the steps between, which keep the same
            blocks. It holds one byte per channel and token for each layer and branch.
        plan_every: 1 keeps no state. n keeps the blocks and tangents of a step for n - 1 more,
            which saves their planning and is measured to cost no quality.
        first_layer: how many times ``density`` the first layer keeps, at least 1. Its tokens are
            still mostly noise, which means say nothing about. The other layers keep less, so that
            the mean over the layers is ``density``; 1 treats all alike, as models do with fewer
            than twice as many layers.
        first_frame: always keep the keys of the first frame.
        compensate: let skipped blocks count through their means.

    Raises:
        UsageError: a parameter is out of range.
    """

    name: ClassVar[str] = "compensated"
    summary: ClassVar[str] = "attends to what block means get wrong, the rest through means"
    source: ClassVar[str] = "vidsparse; related: SVG-EAR, DraftAttention, arXiv:2505.14708"

    budget: ErrorBudget = "flat"
    p: float = 0.9
    rank: Literal["error", "mass"] = "error"
    tangents: bool = True
    frames: int | None = None
    blocks: tuple[int, int] | None = None
    anchor_every: int = 0
    plan_every: int = 1
    first_layer: float = 2.0
    first_frame: bool = False
    compensate: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget not in BUDGETS:
            raise UsageError(f"budget={self.budget!r} is unknown; use one of {BUDGETS}")
        if self.rank not in ("error", "mass"):
            raise UsageError(f"rank={self.rank!r} is unknown; use 'error' or 'mass'")
        Budget(self.budget, self.density, self.p)
        if self.first_layer < 1:
            raise UsageError(f"first_layer={self.first_layer} must be at least 1, which is no more")
        if self.plan_every < 1:
            raise UsageError(f"plan_every={self.plan_every} must be at least 1, which is always")
        if self.anchor_every < 0:
            raise UsageError(f"anchor_every={self.anchor_every} must be at least 0, which is never")
        if self.frames is not None and self.frames < 1:
            raise UsageError(f"frames={self.frames} must be at least 1, or None")

    def init_state(self) -> Anchor | None:
        """Return an anchor that was never set, or None."""
        return Anchor() if self.anchor_every or self.plan_every > 1 else None

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Rank the blocks of one call and keep the best."""
        if self.density == 1:
            return None
        geometry = self.geometry(layout, q.device)
        density = self._density_at(site, geometry.least_density)
        if self.budget != "top_p":
            geometry.check(density)
        if state is not None and self._serves(state, site.step, density):
            return self._plan_again(state, geometry, q.dtype)
        plan, kept = self._fresh_plan(q, k, v, geometry, density)
        if state is not None:
            state.keep_blocks(site.step, density, kept, plan.tangents, q.dtype)
        return replace(plan, anchor=True, dense_reason="anchor") if self.anchor_every else plan

    def _serves(self, state: Anchor, step: int, density: float) -> bool:
        if self.anchor_every:
            return state.error is not None and state.serves(step, density, self.anchor_every)
        return state.serves(step, density, self.plan_every)

    def _plan_again(
        self, state: Anchor, geometry: BlockGeometry, dtype: torch.dtype
    ) -> AttentionPlan | None:
        if state.bits is None:
            return None
        tangents = None if state.tangents is None else state.tangents.float()
        plan = geometry.plan_of_bits(state.bits)
        return replace(plan, tangents=tangents, correction=state.correction(dtype))

    def compare(
        self, exact: Tensor, out: Tensor, plan: AttentionPlan, site: CallSite, state: Any
    ) -> None:
        """Keep what compensation got wrong."""
        state.keep_error(exact, out)

    def phases(self, num_steps: int, first_step: int) -> tuple[Phase, ...]:
        """Tell steps with an anchor from those between."""
        if not self.anchor_every:
            return ()
        anchors = tuple(range(first_step, num_steps, self.anchor_every))
        between = tuple(step for step in range(first_step, num_steps) if step not in anchors)
        return Phase("anchor", anchors, searches=True), Phase("between", between)

    def _fresh_plan(
        self, q: Tensor, k: Tensor, v: Tensor, geometry: BlockGeometry, density: float
    ) -> tuple[AttentionPlan, Tensor]:
        moments = block_moments(q, k, v, geometry)
        mass, error = estimated_scores(moments, geometry)
        scores = mass if self.rank == "mass" or error is None else error
        kept = self._select(scores, geometry, density)
        plan = replace(geometry.plan(kept), tokens=moments.tokens)
        if not (self.tangents and self.compensate):
            return plan, kept
        exact_at = tangents(mass.masked_fill_(kept, 0), moments.q_means)
        return replace(plan, tangents=exact_at), kept

    def geometry(self, layout: VideoLayout, device: torch.device) -> BlockGeometry:
        """Return the token order and blocks for a sequence.

        Args:
            layout: the sequence.
            device: where attention runs.
        """
        block, kv_block = self.blocks or _default_blocks(device)
        frames = self.frames or choose_frames(layout.frames, block)
        frames = min(frames, layout.frames)
        strips = choose_strips(layout.grid, block, frames=frames)
        return strip_geometry(
            layout,
            strips,
            block,
            device,
            kv_block=kv_block,
            frames=frames,
            first_frame=self.first_frame,
        )

    def search_space(self) -> dict[str, SearchRange]:
        """Vary the density and the shape of blocks."""
        return {
            "density": SearchRange((0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)),
            "frames": SearchRange((1, 2, None, 8)),
            "first_frame": SearchRange((False, True)),
        }

    def at_density(self, density: float, *, of_layer: bool) -> "Compensated":
        """Return this method at another density, without a share of the first layer's."""
        first = 1.0 if of_layer else self.first_layer
        return replace(self, density=density, first_layer=first)

    def _density_at(self, site: CallSite, least: float) -> float:
        """Return the density of one call: more in the first layer, less in the others."""
        if site.first_sparse_layer > 0:
            # The first layer is dense: nobody spends what the others would save for it.
            return self.density
        if site.num_layers < 2 * self.first_layer or self.budget == "top_p":
            return self.density
        first = min(1.0, self.first_layer * self.density)
        others = (site.num_layers * self.density - first) / (site.num_layers - 1)
        if others < least:
            return self.density
        return first if site.layer == 0 else others

    def _select(self, scores: Tensor, geometry: BlockGeometry, density: float) -> Tensor:
        if self.budget != "flat":
            scores = scores.float()
        if self.budget == "top_p":
            scores = scores / scores.sum(-1, keepdim=True).clamp(min=1e-30)
        budget = Budget(self.budget, density, self.p)
        sizes = geometry.q.sizes, geometry.kv.sizes
        floor = not geometry.covers_rows
        return budget.select(scores, geometry.forced, *sizes, floor=floor)


def _default_blocks(device: torch.device) -> tuple[int, int]:
    """Return the kernels' query block, and key blocks of half its tokens for finer means."""
    block_q, block_kv = preferred_blocks(device)
    return block_q, min(block_kv, block_q // 2)
