"""SVG's two candidates: a band in frame-major and a band in pixel-major order, as block masks."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask
from vidsparse.layout import VideoLayout, identity_order, inverse_order, pixel_major_order
from vidsparse.methods.blocks import (
    CACHED_GEOMETRIES,
    describe_forced,
    forced_blocks,
    least_density,
)
from vidsparse.methods.budget import check_density, flat_top_k
from vidsparse.methods.partitions import Partition, uniform_partition

Sink = Literal["frame", "positions", "none"]
SINKS: tuple[Sink, ...] = ("frame", "positions", "none")

_LOG = logging.getLogger(__name__)
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, eq=False)
class HeadMasks:
    """Masks and orders of both head types; index 0 is spatial, 1 temporal.

    Attributes:
        kept: (2, Nq, Nkv) bool block masks in their own orders.
        counts: (2, Nq) int32 kept key blocks per row, as ``BlockMask`` has them.
        indices: (2, Nq, Nkv) int32 their ids.
        q_orders: (2, S) int32 token orders of the queries.
        kv_orders: (2, S) int32 token orders of the keys.
        q_block_of: (2, S) int64 query block of each token in natural order.
        kv_block_of: (2, S) int64 key block of each token in natural order.
        blocks: (query, key) tokens per block.
        same: both types are the same, as in a grid of one frame.
    """

    kept: Tensor
    counts: Tensor
    indices: Tensor
    q_orders: Tensor
    kv_orders: Tensor
    q_block_of: Tensor
    kv_block_of: Tensor
    blocks: tuple[int, int]
    same: bool

    def rows(self, rows: Tensor) -> Tensor:
        """Return (2, R, S) bool, the keys in natural order that each natural query row keeps."""
        both = [
            self.kept[kind]
            .index_select(0, self.q_block_of[kind].index_select(0, rows))
            .index_select(1, self.kv_block_of[kind])
            for kind in (0, 1)
        ]
        return torch.stack(both)

    def block_mask(self, temporal: Tensor) -> BlockMask:
        """Return the mask of heads with the given types, (B | 1, H | 1) bool."""
        kinds, S = temporal.long().flatten(), self.q_orders.shape[1]
        counts = self.counts.index_select(0, kinds).unflatten(0, temporal.shape)
        indices = self.indices.index_select(0, kinds).unflatten(0, temporal.shape)
        return BlockMask(counts, indices, *self.blocks, S, S)


@lru_cache(maxsize=CACHED_GEOMETRIES)
def head_masks(
    layout: VideoLayout,
    blocks: tuple[int, int],
    density: float,
    sink: Sink,
    device: torch.device,
) -> HeadMasks:
    """Build both candidates so that either one, text and sink counted, has the density asked for.

    Text rows and columns, the sink and every block's own neighbourhood stay; the rest of the
    budget goes to the blocks nearest to the diagonal.

    Args:
        layout: the sequence.
        blocks: (query, key) tokens per block.
        density: kept share of query-key pairs, in (0, 1].
        sink: "frame" keeps the keys of the first frame in both orders, "positions" the first
            ``tokens_per_frame`` positions of either order as the original does, "none" nothing.
        device: where the masks live.

    Raises:
        UsageError: text and sink alone exceed the density.

    Source: SVG, arXiv:2502.01776, section 4; the original counts neither sink nor rounding.
    """
    same = layout.frames == 1
    if same:
        _LOG.warning("one frame: temporal and spatial heads are the same, all count as spatial")
    natural, pixels = identity_order(layout), pixel_major_order(layout)
    keys = _first_frame_first(layout, pixels) if sink == "frame" and not same else pixels
    orders = [(natural, natural), (pixels, keys)]
    bands = [_band(layout, q, kv, blocks, sink) for q, kv in orders]
    least = max(band.least_density for band in bands)
    check_density(density, least, describe_forced(layout, first_frame=sink != "none", own=True))
    kept = [band.fill(density) for band in bands]
    lists = BlockMask.from_dense(
        torch.stack(kept)[None],
        block_q=blocks[0],
        block_kv=blocks[1],
        seq_q=layout.num_tokens,
        seq_kv=layout.num_tokens,
    )
    q_orders, kv_orders = (torch.stack(pair) for pair in zip(*orders, strict=True))
    return HeadMasks(
        kept=torch.stack(kept).to(device),
        counts=lists.kv_num_blocks[0].to(device),
        indices=lists.kv_indices[0].to(device),
        q_orders=q_orders.to(device),
        kv_orders=kv_orders.to(device),
        q_block_of=(inverse_order(q_orders).long() // blocks[0]).to(device),
        kv_block_of=(inverse_order(kv_orders).long() // blocks[1]).to(device),
        blocks=blocks,
        same=same,
    )


def _first_frame_first(layout: VideoLayout, pixels: Tensor) -> Tensor:
    """Move the first frame to the front of the video, so that its keys fill whole blocks."""
    grid = pixels[layout.text_before : layout.video_end].view(-1, layout.frames)
    moved = torch.cat([grid[:, 0], grid[:, 1:].reshape(-1)])
    return torch.cat([pixels[: layout.text_before], moved, pixels[layout.video_end :]])


@dataclass(frozen=True, eq=False)
class _Band:
    """One candidate before its budget is spent: what stays, and the order of the rest."""

    q: Partition
    kv: Partition
    forced: Tensor
    nearness: Tensor

    @property
    def least_density(self) -> float:
        return least_density(self.forced, self.q, self.kv)

    def fill(self, density: float) -> Tensor:
        """Return (Nq, Nkv) bool: what stays, then the blocks nearest to the diagonal."""
        scores, sizes = self.nearness[None, None], (self.q.sizes, self.kv.sizes)
        return flat_top_k(scores, density, *sizes, forced=self.forced)[0, 0]


def _band(
    layout: VideoLayout,
    q_order: Tensor,
    kv_order: Tensor,
    blocks: tuple[int, int],
    sink: Sink,
) -> _Band:
    q = uniform_partition(layout.num_tokens, blocks[0], q_order)
    kv = uniform_partition(layout.num_tokens, blocks[1], kv_order)
    # Neighbourhood is measured along the order of the queries, in tokens.
    place = inverse_order(q_order).double()
    q_low, q_mid, q_high = _extent(place[q_order.long()], q)
    kv_low, kv_mid, kv_high = _extent(place[kv_order.long()], kv)
    forced = forced_blocks(layout, q, kv, first_frame=False, own=False)
    forced |= (q_low[:, None] <= kv_high) & (kv_low <= q_high[:, None])
    if sink != "none" and layout.frames > 1:
        forced |= _sink_blocks(layout, kv)
    nearness = -(q_mid[:, None] - kv_mid).abs() - _tie_break(q_mid, kv_mid, blocks)
    return _Band(q, kv, forced, nearness)


def _sink_blocks(layout: VideoLayout, kv: Partition) -> Tensor:
    """Return (Nkv,) bool, blocks over the positions of the first frame's number of tokens."""
    end = layout.text_before + layout.tokens_per_frame
    return (kv.offsets[:-1] < end) & (kv.offsets[1:] > layout.text_before)


def _extent(places: Tensor, cut: Partition) -> tuple[Tensor, Tensor, Tensor]:
    """Return least, mean and greatest place of each block, (N,) float64 each."""
    lengths = cut.sizes
    return tuple(  # type: ignore[return-value]
        torch.segment_reduce(places, how, lengths=lengths) for how in ("min", "mean", "max")
    )


def _tie_break(q_mid: Tensor, kv_mid: Tensor, blocks: tuple[int, int]) -> Tensor:
    """Return up to a quarter token of distance, the same for (i, j) and (j, i).

    Equally distant blocks are then filled evenly along the diagonal instead of from the top.
    """
    steps = torch.minimum(q_mid[:, None], kv_mid) / max(blocks)
    return torch.frac(steps.floor() * _GOLDEN) / 4
