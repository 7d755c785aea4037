"""Cut a sequence into blocks: equal ones, tiles of the video, pieces of a walk through it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vidsparse.layout import VideoLayout, identity_order, tile_order


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

    @cached_property
    def sizes(self) -> Tensor:
        """(N,) int64 tokens per block."""
        return self.offsets.diff().long()

    @cached_property
    def log_sizes(self) -> Tensor:
        """(N,) float32 natural logarithms of the sizes."""
        return self.sizes.float().log()

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
    offsets = torch.tensor([0, *sizes], device="cpu").cumsum(0).to(torch.int32)
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
        frames: most frames that are walked side by side, at least 1.

    Returns:
        (S,) int32, ``order[i]`` is the natural index of the token at position i.
    """
    axes = [torch.arange(n, device="cpu") for n in layout.grid]
    f, y, x = torch.meshgrid(*axes, indexing="ij")
    strip = y * strips // layout.height
    x = torch.where(strip % 2 == 0, x, layout.width - 1 - x)
    # Groups of frames are as even as possible: none is left with a single frame.
    groups = -(-layout.frames // frames)
    group = f * groups // layout.frames
    first = -(-group * layout.frames // groups)
    walk = (strip * layout.width + x) * frames + f - first
    walk = walk * layout.height + y
    last = strips * layout.width * frames * layout.height - 1
    walk = torch.where(group % 2 == 0, walk, last - walk) + group * (last + 1)
    order = identity_order(layout)
    inside = torch.argsort(walk.reshape(-1)).to(torch.int32)
    order[layout.text_before : layout.video_end] = inside + layout.text_before
    return order


def _pieces(total: int, size: int) -> list[int]:
    whole, rest = divmod(total, size)
    return [size] * whole + [rest] * (rest > 0)
