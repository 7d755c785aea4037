"""The best blocks by exact attention mass: the control that no planner can beat on its blocks."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.block_statistics import block_mass
from vidsparse.kernels.launch import preferred_blocks
from vidsparse.kernels.permute import permute_tokens
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod, register
from vidsparse.methods.blocks import BlockGeometry, raster_geometry, tile_geometry
from vidsparse.methods.budget import Budget
from vidsparse.methods.windows import choose_tile
from vidsparse.plan import AttentionPlan, CallSite


@register
@dataclass(frozen=True)
class Oracle(SparseMethod):
    """Compute the whole attention map, then keep the blocks with most of its mass.

    Slower than dense attention; it says how much of the map any block mask of this density holds.

    Attributes:
        density: kept share of query-key pairs, text included, in (0, 1].
        order: "raster" cuts the natural order into blocks, "tile" takes DraftAttention's tiles.
        blocks: (query, key) tokens per block, at most for tiles; None takes the kernels' choice.
        budget: "flat" ranks all blocks of a head, which keeps most mass; "row" gives every query
            block the same number of keys.
    """

    name: ClassVar[str] = "oracle"
    summary: ClassVar[str] = "top blocks by exact mass: the ceiling of block selection"
    source: ClassVar[str] = "control"

    order: Literal["raster", "tile"] = "raster"
    blocks: tuple[int, int] | None = None
    budget: Literal["flat", "row"] = "flat"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget not in ("flat", "row"):
            raise UsageError(f"budget={self.budget!r} is unknown; use 'flat' or 'row'")
        if self.order not in ("raster", "tile"):
            raise UsageError(f"order={self.order!r} is unknown; use 'raster' or 'tile'")

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Choose the blocks of one call by exact mass."""
        if self.density == 1:
            return None
        geometry = self._geometry(q, layout)
        geometry.check(self.density)
        sizes = geometry.q.sizes, geometry.kv.sizes
        mass = exact_mass(q, k, geometry)
        budget = Budget(self.budget, self.density)
        return geometry.plan(budget.select(mass, geometry.forced, *sizes))

    def _geometry(self, q: Tensor, layout: VideoLayout) -> BlockGeometry:
        blocks = self.blocks or preferred_blocks(q.device)
        if self.order == "raster":
            return raster_geometry(layout, blocks, q.device, own=False)
        return tile_geometry(layout, choose_tile(layout.grid, min(blocks)), q.device, own=False)


def exact_mass(q: Tensor, k: Tensor, geometry: BlockGeometry) -> Tensor:
    """Return (B, H, Nq, Nkv) float32, the softmax mass of each block.

    The attention map itself exists in chunks of rows only.
    """
    if geometry.q.order is not None:
        q = permute_tokens(q, geometry.q.order.view(1, 1, -1))
    if geometry.kv.order is not None:
        k = permute_tokens(k, geometry.kv.order.view(1, 1, -1))
    if geometry.q.block is not None and geometry.kv.block is not None:
        return block_mass(q, k, block_q=geometry.q.block, block_kv=geometry.kv.block)
    q_offsets, kv_offsets = geometry.q.offsets.view(1, 1, -1), geometry.kv.offsets.view(1, 1, -1)
    return block_mass(q, k, q_offsets=q_offsets, kv_offsets=kv_offsets)
