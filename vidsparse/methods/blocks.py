"""Block geometry shared by the methods: which blocks of a cut sequence always stay."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vidsparse.kernels.bit_masks import mask_from_bits
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.layout import VideoLayout
from vidsparse.methods.budget import check_density
from vidsparse.methods.partitions import (
    Partition,
    strip_order,
    tile_partition,
    uniform_partition,
)
from vidsparse.plan import AttentionPlan

# Geometries kept: a pipeline needs one or two, prompts of other lengths add more.
CACHED_GEOMETRIES = 16


def text_blocks(layout: VideoLayout, partition: Partition) -> Tensor:
    """Return (N,) bool, blocks that hold text; text keeps its place in every order."""
    start, end = partition.offsets[:-1], partition.offsets[1:]
    return (start < layout.text_before) | (end > layout.video_end)


def first_frame_blocks(layout: VideoLayout, partition: Partition) -> Tensor:
    """Return (N,) bool, blocks that hold a token of the first frame, in the partition's order."""
    first = torch.zeros(layout.num_tokens, dtype=torch.bool, device="cpu")
    first[layout.text_before : layout.text_before + layout.tokens_per_frame] = True
    if partition.order is not None:
        first = first[partition.order.long()]
    held = torch.zeros(len(partition.offsets) - 1, dtype=torch.bool, device="cpu")
    held[partition.block_of_position()[first]] = True
    return held


def own_blocks(q: Partition, kv: Partition) -> Tensor:
    """Return (Nq, Nkv) bool, key blocks that share positions with the query block."""
    starts = torch.maximum(q.offsets[:-1, None], kv.offsets[:-1])
    ends = torch.minimum(q.offsets[1:, None], kv.offsets[1:])
    return starts < ends


def forced_blocks(
    layout: VideoLayout, q: Partition, kv: Partition, *, first_frame: bool, own: bool = True
) -> Tensor:
    """Return the blocks that a method keeps whatever they score.

    Args:
        layout: the sequence.
        q: query blocks.
        kv: key blocks.
        first_frame: keep the keys of the first frame; without effect on grids of one frame.
        own: keep every query block's own neighbourhood; both partitions share one order.

    Returns:
        (Nq, Nkv) bool: text rows, text columns, and what was asked for.
    """
    forced = text_blocks(layout, q)[:, None] | text_blocks(layout, kv)
    if first_frame and layout.frames > 1:
        forced = forced | first_frame_blocks(layout, kv)
    return forced | own_blocks(q, kv) if own else forced


def describe_forced(layout: VideoLayout, *, first_frame: bool, own: bool) -> str:
    """Name what ``forced_blocks`` keeps on this layout, for people."""
    parts = ["text"] if layout.text_tokens else []
    parts += ["the first frame"] if first_frame and layout.frames > 1 else []
    last = "each block's own keys" if own else "one block per row"
    return f"{', '.join(parts)} and {last}" if parts else last


def least_density(forced: Tensor, q: Partition, kv: Partition) -> float:
    """Return the share of pairs in forced blocks, counting one block for rows without any."""
    keys = (forced * kv.sizes).sum(-1)
    keys = torch.where(forced.any(-1), keys, kv.sizes.max())
    return float((keys * q.sizes).sum() / (q.sizes.sum() * kv.sizes.sum()))


@dataclass(frozen=True, eq=False)
class BlockGeometry:
    """One token order for queries and keys, cut into blocks, with the blocks that always stay.

    Attributes:
        q: query blocks, on the device.
        kv: key blocks, on the device.
        forced: (Nq, Nkv) bool.
        least_density: share of pairs in forced blocks, in (0, 1].
        always: what those hold, for people.
        covers_rows: every query block has a forced key block.
    """

    q: Partition
    kv: Partition
    forced: Tensor
    least_density: float
    always: str
    covers_rows: bool = False

    def check(self, density: float) -> None:
        """Refuse a density that forced blocks alone exceed.

        Raises:
            UsageError: it does; the message names the least density.
        """
        check_density(density, self.least_density, self.always)

    def plan(self, kept: Tensor) -> AttentionPlan:
        """Wrap chosen blocks, (B | 1, H | 1, Nq, Nkv) bool, as a plan."""
        order = None if self.q.order is None else self.q.order.view(1, 1, -1)
        return AttentionPlan(block_mask(kept, self.q, self.kv), order, order)

    def plan_of_bits(self, bits: Tensor) -> AttentionPlan:
        """Wrap chosen blocks as ``pack_bits`` stored them, (B, H, Nq, ceil(Nkv / 8)) uint8.

        Raises:
            ValueError: the blocks are not equal.
        """
        if self.q.block is None or self.kv.block is None:
            raise ValueError("masks wait as bits only for equal blocks, as raster and strips have")
        mask = mask_from_bits(
            bits,
            blocks=(self.q.block, self.kv.block),
            seq_q=self.q.num_tokens,
            seq_kv=self.kv.num_tokens,
        )
        order = None if self.q.order is None else self.q.order.view(1, 1, -1)
        return AttentionPlan(mask, order, order)


def block_mask(kept: Tensor, q: Partition, kv: Partition) -> BlockMask | RaggedBlockMask:
    """Describe chosen blocks, (B | 1, H | 1, Nq, Nkv) bool, to the kernels."""
    if q.block is not None and kv.block is not None:
        return BlockMask.from_dense(
            kept,
            block_q=q.block,
            block_kv=kv.block,
            seq_q=q.num_tokens,
            seq_kv=kv.num_tokens,
        )
    q_offsets, kv_offsets = q.offsets.view(1, 1, -1), kv.offsets.view(1, 1, -1)
    return RaggedBlockMask(q_offsets, kv_offsets, kept, q.num_tokens, kv.num_tokens)


@lru_cache(maxsize=CACHED_GEOMETRIES)
def raster_geometry(
    layout: VideoLayout,
    blocks: tuple[int, int],
    device: torch.device,
    *,
    first_frame: bool = False,
    own: bool = True,
) -> BlockGeometry:
    """Return the natural order cut into equal (query, key) blocks."""
    q = uniform_partition(layout.num_tokens, blocks[0])
    kv = uniform_partition(layout.num_tokens, blocks[1])
    return _geometry(layout, q, kv, device, first_frame=first_frame, own=own)


@lru_cache(maxsize=CACHED_GEOMETRIES)
def tile_geometry(
    layout: VideoLayout,
    tile: tuple[int, int, int],
    device: torch.device,
    *,
    first_frame: bool = False,
    own: bool = True,
) -> BlockGeometry:
    """Return the tile order with one block per tile, for queries and keys."""
    cut = tile_partition(layout, tile)
    return _geometry(layout, cut, cut, device, first_frame=first_frame, own=own)


@lru_cache(maxsize=CACHED_GEOMETRIES)
def strip_geometry(
    layout: VideoLayout,
    strips: int,
    block: int,
    device: torch.device,
    *,
    kv_block: int | None = None,
    frames: int = 1,
    first_frame: bool = False,
    own: bool = True,
) -> BlockGeometry:
    """Return the strip order cut into equal blocks, for queries and keys; ``kv_block`` differs."""
    order = strip_order(layout, strips, frames=frames)
    q, kv = (uniform_partition(layout.num_tokens, n, order) for n in (block, kv_block or block))
    return _geometry(layout, q, kv, device, first_frame=first_frame, own=own)


def _geometry(
    layout: VideoLayout,
    q: Partition,
    kv: Partition,
    device: torch.device,
    *,
    first_frame: bool,
    own: bool,
) -> BlockGeometry:
    forced = forced_blocks(layout, q, kv, first_frame=first_frame, own=own)
    least = least_density(forced, q, kv)
    always = describe_forced(layout, first_frame=first_frame, own=own)
    covers = bool(forced.any(-1).all())
    return BlockGeometry(q.to(device), kv.to(device), forced.to(device), least, always, covers)
