"""The tiles that LiteAttention starts from: all of them, or those another method keeps."""

from typing import Literal

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.launch import preferred_blocks
from vidsparse.layout import VideoLayout
from vidsparse.methods.blocks import strip_geometry
from vidsparse.methods.lite_state import Tiles
from vidsparse.methods.mask_bits import pack_bits
from vidsparse.methods.windows import choose_strips
from vidsparse.plan import AttentionPlan

Order = Literal["raster", "compact"]


def check_cut(order: str, frames: int) -> None:
    """Refuse orders that equal blocks cannot have.

    Raises:
        UsageError: one is unknown or out of range.
    """
    if order not in ("raster", "compact"):
        raise UsageError(f"order={order!r} is unknown; use 'raster' or 'compact'")
    if frames < 1 or (frames > 1 and order == "raster"):
        raise UsageError(f"frames={frames} must be at least 1; above 1, order='compact'")


def all_tiles(
    q: Tensor,
    layout: VideoLayout,
    step: int,
    *,
    blocks: tuple[int, int] | None,
    order: Order,
    frames: int,
) -> Tiles:
    """Cut a sequence into tiles and keep them all.

    Args:
        q: (B, H, S, D) queries.
        layout: the sequence.
        step: step of the call.
        blocks: (query, key) tokens of a tile; None asks the kernels.
        order: "raster" for the natural token order, "compact" for a walk through the frames.
        frames: frames that share a compact tile.
    """
    blocks = blocks or preferred_blocks(q.device)
    walk = None
    if order == "compact":
        room, together = min(blocks), min(frames, layout.frames)
        strips = choose_strips(layout.grid, room, frames=together)
        walk = strip_geometry(layout, strips, room, q.device, frames=together).q.order
        walk = None if walk is None else walk.view(1, 1, -1)
        blocks = (room, room)
    sides = [-(-layout.num_tokens // block) for block in blocks]
    every = torch.ones(*q.shape[:2], *sides, dtype=torch.bool, device=q.device)
    return _tiles(layout, step, blocks, (walk, walk), every, full=True)


def seeded_tiles(
    q: Tensor, layout: VideoLayout, step: int, plan: AttentionPlan, seed: str
) -> Tiles:
    """Keep what another method's plan keeps, in its order, and what always stays.

    Raises:
        UsageError: its blocks are of unequal size.
    """
    mask = plan.mask
    if not isinstance(mask, BlockMask):
        raise UsageError(
            f"seed={seed!r} keeps blocks of unequal size here, and tiles are equal; use draft or "
            "adaspa"
        )
    kept = mask.to_dense()
    kept = kept.expand(*q.shape[:2], *kept.shape[2:])
    blocks, orders = (mask.block_q, mask.block_kv), (plan.q_order, plan.kv_order)
    tiles = _tiles(layout, step, blocks, orders, kept, full=False)
    tiles.bits = pack_bits(kept | tiles.geometry().forced)
    return tiles


def _tiles(
    layout: VideoLayout,
    step: int,
    blocks: tuple[int, int],
    orders: tuple[Tensor | None, Tensor | None],
    kept: Tensor,
    *,
    full: bool,
) -> Tiles:
    skipped = torch.zeros(kept.shape[:3], dtype=torch.float32, device=kept.device)
    return Tiles(layout, step, blocks, *orders, pack_bits(kept), full, skipped)
