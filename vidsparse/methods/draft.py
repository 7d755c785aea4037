"""DraftAttention: a low-resolution attention map of pooled tokens chooses the blocks."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.launch import preferred_blocks
from vidsparse.kernels.permute import permute_tokens
from vidsparse.kernels.pooling import Variances, permute_and_pool, pooled_means
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SearchRange, SparseMethod, register
from vidsparse.methods.blocks import BlockGeometry, strip_geometry, tile_geometry
from vidsparse.methods.budget import DENSITY_KINDS, Budget, BudgetKind
from vidsparse.methods.clusters import cluster_logits
from vidsparse.methods.partitions import Partition
from vidsparse.methods.windows import choose_strips, choose_tile, tile_count
from vidsparse.plan import AttentionPlan, CallSite

Tiling = Literal["auto", "windows", "strips"]
TILINGS: tuple[Tiling, ...] = ("auto", "windows", "strips")


@register
@dataclass(frozen=True)
class Draft(SparseMethod):
    """Pool queries and keys over windows, attend among the pools, keep the best block pairs.

    Any grid works and no token is padded. Windows are rectangles, smaller at the far edges where
    they do not divide the grid; strips cut equal blocks from a walk through each frame instead,
    which the fastest kernels need.

    Attributes:
        density: kept share of query-key pairs, text and own blocks included, in (0, 1]; the
            least share of each row for the budget "top_p", without effect for "threshold".
        budget: "flat" ranks all blocks of a head, "shared" those of all heads together, "row"
            each row, "top_p" takes a share ``p`` of each row's draft mass, "threshold" every
            block with a draft mass of ``threshold``.
        p: share of a row's draft mass for "top_p", in [0, 1].
        threshold: least draft mass of a block for "threshold", in [0, 1].
        tiling: "windows", "strips", or "auto": windows where all are one kernel block, else strips.
        window: (rows, columns) of a window; None chooses one for the grid and the kernels.
        frames: frames pooled together, at least 1.
        second_moment: add half the variance of the logits within a block pair, so that blocks
            with a few strong pairs are not lost in the mean.
        first_frame: always keep the keys of the first frame.
        block: most tokens of a window and tokens of a strip block; None asks the kernels.

    Raises:
        UsageError: a parameter is out of range.
    """

    name: ClassVar[str] = "draft"
    summary: ClassVar[str] = "blocks chosen by a low-resolution attention map"
    source: ClassVar[str] = "DraftAttention, arXiv:2505.14708"

    budget: BudgetKind = "flat"
    p: float = 0.9
    threshold: float = 0.0
    tiling: Tiling = "auto"
    window: tuple[int, int] | None = None
    frames: int = 1
    second_moment: bool = False
    first_frame: bool = False
    block: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._budget()
        if self.tiling not in TILINGS:
            raise UsageError(f"tiling={self.tiling!r} is unknown; use one of {TILINGS}")
        if self.window is not None and (min(self.window) < 1 or self.tiling == "strips"):
            raise UsageError(
                f"window={self.window} must be at least (1, 1), with tiling 'auto' or 'windows'"
            )
        if self.frames < 1:
            raise UsageError(f"frames={self.frames} must be at least 1")
        if self.block is not None and self.block < self.frames:
            raise UsageError(
                f"block={self.block} must hold a token of each of {self.frames} frames"
            )

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Draw the draft map of one call and keep its best blocks."""
        if self.density == 1 and self.budget in DENSITY_KINDS:
            return None
        geometry = self.geometry(layout, q.device)
        if self.budget in DENSITY_KINDS:
            geometry.check(self.density)
        sizes = geometry.q.sizes, geometry.kv.sizes
        q_pools, k_pools = pooled_blocks(q, k, geometry, variances=self.second_moment)
        scores = draft_mass(q_pools, k_pools, geometry)
        floor = not geometry.covers_rows
        kept = self._budget().select(scores, geometry.forced, *sizes, floor=floor)
        plan = geometry.plan(kept)
        if q_pools.tokens is None or k_pools.tokens is None:
            return plan
        moved = (q_pools.tokens, k_pools.tokens, permute_tokens(v, plan.kv_order))
        return replace(plan, tokens=moved)

    def geometry(self, layout: VideoLayout, device: torch.device) -> BlockGeometry:
        """Return the token order and blocks for a sequence.

        Args:
            layout: the sequence.
            device: where attention runs.

        Raises:
            UsageError: the window is larger than the grid.
        """
        room = self.block or min(preferred_blocks(device))
        frames = min(self.frames, layout.frames)
        tile = self._tile(layout, room, frames)
        if self._takes_windows(layout, tile, room):
            return tile_geometry(layout, tile, device, first_frame=self.first_frame)
        strips = choose_strips(layout.grid, room, frames=frames)
        return strip_geometry(
            layout, strips, room, device, frames=frames, first_frame=self.first_frame
        )

    def instead_of_density(self) -> str | None:
        """Name the budget where it looks at the threshold alone."""
        return "budget='threshold'" if self.budget == "threshold" else None

    def search_space(self) -> dict[str, SearchRange]:
        """Vary the density, the budget's reach and the draft map."""
        return {
            "density": SearchRange((0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)),
            "budget": SearchRange(("flat", "row", "shared")),
            "frames": SearchRange((1, 2, 4)),
            "second_moment": SearchRange((False, True)),
            "first_frame": SearchRange((False, True)),
        }

    def _budget(self) -> Budget:
        return Budget(self.budget, self.density, self.p, self.threshold)

    def _tile(self, layout: VideoLayout, room: int, frames: int) -> tuple[int, int, int]:
        if self.window is None:
            return choose_tile(layout.grid, room, frames=frames)
        if self.window[0] > layout.height or self.window[1] > layout.width:
            raise UsageError(
                f"window={self.window} is larger than the grid of {layout.height} rows and "
                f"{layout.width} columns; use a smaller one, or None"
            )
        return frames, *self.window

    def _takes_windows(self, layout: VideoLayout, tile: tuple[int, int, int], room: int) -> bool:
        if self.tiling == "windows" or self.window is not None:
            return True
        whole = tile_count(layout.grid, tile) * room == layout.video_tokens
        aligned = layout.text_before % room == 0
        return self.tiling == "auto" and whole and aligned


def draft_map(
    q: Tensor, k: Tensor, geometry: BlockGeometry, *, second_moment: bool = False
) -> Tensor:
    """Attend among pooled tokens.

    A pooled logit is exactly the mean of the logits of a block pair. The number of keys in a
    block is added as its logarithm, as if all its keys were their mean.

    Args:
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        geometry: token order and blocks.
        second_moment: add half the variance of the logits of each block pair, for independent
            channels: the next term of the logarithm of their mean exponential.

    Returns:
        (B, H, N, N) float32, draft share of each key block in each query block's row.

    Source: DraftAttention, arXiv:2505.14708, section 3.1; corrections from later work.
    """
    return draft_mass(*pooled_blocks(q, k, geometry, variances=second_moment), geometry)


class PooledBlocks(NamedTuple):
    """Means (B, H, N, D) of one side's blocks, variances if asked for, tokens if moved."""

    means: Tensor
    variances: Tensor | None
    tokens: Tensor | None


def pooled_blocks(
    q: Tensor, k: Tensor, geometry: BlockGeometry, *, variances: bool
) -> tuple[PooledBlocks, PooledBlocks]:
    """Average queries and keys over blocks; equal blocks of an order are moved in the same pass."""
    return _pooled(q, geometry.q, variances), _pooled(k, geometry.kv, variances)


def _pooled(x: Tensor, cut: Partition, variances: bool) -> PooledBlocks:
    if cut.order is not None and cut.block is not None:
        spread: Variances | None = "channels" if variances else None
        moved = permute_and_pool(x, cut.order, cut.block, variances=spread)
        return PooledBlocks(moved.means, moved.variances, moved.tokens)
    means = pooled_means(x, cut.offsets, order=cut.order, block=cut.block, variances=variances)
    return PooledBlocks(*means, None)


def draft_mass(q: PooledBlocks, k: PooledBlocks, geometry: BlockGeometry) -> Tensor:
    """Return ``draft_map`` of pooled blocks, with the second moment where there are variances."""
    logits = cluster_logits(q.means, k.means, geometry.kv.log_sizes.view(1, 1, -1))
    if q.variances is not None and k.variances is not None:
        # The variance of a product of independent channels.
        spread = q.variances @ (k.variances + k.means.square()).mT
        spread += q.means.square() @ k.variances.mT
        logits += spread / (2 * q.means.shape[3])
    return torch.softmax(logits, -1)
