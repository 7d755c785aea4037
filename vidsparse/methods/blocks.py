"""Block geometry shared by the methods: how a sequence is cut, and which blocks always stay."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.layout import VideoLayout, identity_order, tile_order
from vidsparse.methods.budget import check_density
from vidsparse.plan import AttentionPlan

# Geometries kept: a pipeline needs one or two, prompts of other lengths add more.
CACHED_GEOMETRIES = 16


@dataclass(frozen=True, eq=False)
class Partition:
    """A token order cut into blocks.

    Attributes:
        offsets: (N + 1,) int32, first position of each block, and S.
        order: (S,) int32, natural index of the token at each position; None for natural order.
        block: tokens per block when all are equal but a smaller last one; else None.
        num_tokens: S.
    """

    offsets: Tensor
    order: Tensor | None
    block: int | None
    num_tokens: int

    @property
    def sizes(self) -> Tensor:
        """(N,) int64 tokens per block."""
        return self.offsets.diff().long()

    def block_of_position(self) -> Tensor:
        """Return (S,) int64, the block of each position."""
        ids = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return ids.repeat_interleave(self.sizes)

    def to(self, device: torch.device | str) -> "Partition":
        """Return a copy on a device."""
        order = None if self.order is None else self.order.to(device)
        return Partition(self.offsets.to(device), order, self.block, self.num_tokens)


def partition_sizes(sizes: list[int], order: Tensor | None = None) -> Partition:
    """Cut an order into blocks of the given sizes."""
    offsets = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)
    equal = all(size == sizes[0] for size in sizes[:-1]) and sizes[-1] <= sizes[0]
    return Partition(offsets, order, sizes[0] if equal else None, sum(sizes))


def uniform_partition(num_tokens: int, block: int, order: Tensor | None = None) -> Partition:
    """Cut a sequence into equal blocks; the last one may be smaller."""
    return partition_sizes(_pieces(num_tokens, block), order)


def tile_partition(layout: VideoLayout, tile: tuple[int, int, int]) -> Partition:
    """Cut the video into tiles, one block each, and the text into blocks of at most that size.

    Args:
        layout: the sequence.
        tile: (frames, rows, columns) of one tile; tiles at the far edges may be smaller.

    Raises:
        ValueError: a tile axis is below 1 or beyond the grid.
    """
    order = tile_order(layout, tile)
    axes = [_pieces(n, t) for n, t in zip(layout.grid, tile, strict=True)]
    cells = [f * y * x for f in axes[0] for y in axes[1] for x in axes[2]]
    text = tile[0] * tile[1] * tile[2]
    before, after = _pieces(layout.text_before, text), _pieces(layout.text_after, text)
    return partition_sizes([*before, *cells, *after], order)


def strip_order(layout: VideoLayout, strips: int, *, frames: int = 1) -> Tensor:
    """Return an order in which every run of neighbours is a compact piece of the video.

    A frame is walked strip by strip, each strip column by column, and every other strip and
    frame backwards, so that the walk never jumps. Equal blocks of any size can then be cut from
    it on any grid, with nothing padded and no smaller blocks at edges.

    Args:
        layout: the sequence; text keeps its place.
        strips: horizontal strips of a frame, at least 1 and at most its rows; as even as possible.
        frames: frames that are walked side by side, at least 1.

    Returns:
        (S,) int32, ``order[i]`` is the natural index of the token at position i.
    """
    axes = [torch.arange(n) for n in layout.grid]
    f, y, x = torch.meshgrid(*axes, indexing="ij")
    strip = y * strips // layout.height
    x = torch.where(strip % 2 == 0, x, layout.width - 1 - x)
    walk = (strip * layout.width + x) * frames + f % frames
    walk = walk * layout.height + y
    last = strips * layout.width * frames * layout.height - 1
    group = f // frames
    walk = torch.where(group % 2 == 0, walk, last - walk) + group * (last + 1)
    order = identity_order(layout)
    inside = torch.argsort(walk.reshape(-1)).to(torch.int32)
    order[layout.text_before : layout.video_end] = inside + layout.text_before
    return order


def text_blocks(layout: VideoLayout, partition: Partition) -> Tensor:
    """Return (N,) bool, blocks that hold text; text keeps its place in every order."""
    start, end = partition.offsets[:-1], partition.offsets[1:]
    return (start < layout.text_before) | (end > layout.video_end)


def first_frame_blocks(layout: VideoLayout, partition: Partition) -> Tensor:
    """Return (N,) bool, blocks that hold a token of the first frame, in the partition's order."""
    first = torch.zeros(layout.num_tokens, dtype=torch.bool)
    first[layout.text_before : layout.text_before + layout.tokens_per_frame] = True
    if partition.order is not None:
        first = first[partition.order.long()]
    held = torch.zeros(len(partition.offsets) - 1, dtype=torch.bool)
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
    """

    q: Partition
    kv: Partition
    forced: Tensor
    least_density: float
    always: str

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
    frames: int = 1,
    first_frame: bool = False,
    own: bool = True,
) -> BlockGeometry:
    """Return the strip order cut into equal blocks, for queries and keys."""
    cut = uniform_partition(layout.num_tokens, block, strip_order(layout, strips, frames=frames))
    return _geometry(layout, cut, cut, device, first_frame=first_frame, own=own)


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
    return BlockGeometry(q.to(device), kv.to(device), forced.to(device), least, always)


def _pieces(total: int, size: int) -> list[int]:
    whole, rest = divmod(total, size)
    return [size] * whole + [rest] * (rest > 0)
