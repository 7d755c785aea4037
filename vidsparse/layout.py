"""Where the video tokens lie in a sequence, and the token orders methods use."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class VideoLayout:
    """The token sequence of one self-attention call: text, a frame-major video grid, text.

    Token ``text_before + (f * height + y) * width + x`` is pixel (y, x) of latent frame f.

    Attributes:
        frames: F, latent frames, at least 1.
        height: rows of the token grid of one frame (after patchify).
        width: columns of the token grid of one frame.
        text_before: text tokens before the video.
        text_after: text tokens after the video, padding included.
        text_valid: per batch row, how many of ``text_after`` are no padding; None for all.

    Raises:
        ValueError: a size is out of range.
    """

    frames: int
    height: int
    width: int
    text_before: int = 0
    text_after: int = 0
    text_valid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1:
            raise ValueError(f"grid {self.grid} has an empty axis; every axis needs at least 1")
        if min(self.text_before, self.text_after) < 0:
            raise ValueError("text_before and text_after are counts of tokens, at least 0")
        if any(not 0 <= n <= self.text_after for n in self.text_valid or ()):
            raise ValueError(
                f"text_valid {self.text_valid} must lie in 0..text_after={self.text_after}"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width

    @property
    def tokens_per_frame(self) -> int:
        """Video tokens of one latent frame."""
        return self.height * self.width

    @property
    def video_tokens(self) -> int:
        """Video tokens of the whole clip."""
        return self.frames * self.tokens_per_frame

    @property
    def text_tokens(self) -> int:
        """Text tokens on both sides, padding included."""
        return self.text_before + self.text_after

    @property
    def num_tokens(self) -> int:
        """S, all tokens."""
        return self.video_tokens + self.text_tokens

    @property
    def video_end(self) -> int:
        """Position one past the last video token."""
        return self.text_before + self.video_tokens

    def without_padding(self, valid: int) -> "VideoLayout":
        """Return the layout of a sequence cut after ``valid`` tokens of the text behind."""
        return replace(self, text_after=valid, text_valid=None)


def identity_order(layout: VideoLayout, device: torch.device | str = "cpu") -> Tensor:
    """Return the natural order: (S,) int32, position i holds token i."""
    return torch.arange(layout.num_tokens, dtype=torch.int32, device=device)


def pixel_major_order(layout: VideoLayout, device: torch.device | str = "cpu") -> Tensor:
    """Return the order that makes the frames of one pixel neighbours; text stays in place.

    Args:
        layout: the sequence.
        device: where the order is built.

    Returns:
        (S,) int32, ``order[i]`` is the natural index of the token at position i.

    Source: SVG, arXiv:2502.01776, section 4.2 (layout transformation).
    """
    order = identity_order(layout, device)
    grid = order[layout.text_before : layout.video_end].view(layout.frames, -1)
    order[layout.text_before : layout.video_end] = grid.T.reshape(-1).clone()
    return order


def tile_order(
    layout: VideoLayout, tile: tuple[int, int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Return the order that lays the video out tile by tile; text stays in place.

    Tiles are visited frame-major, tokens inside a tile too; tiles at the far edges are smaller
    when ``tile`` does not divide the grid, nothing is padded.

    Args:
        layout: the sequence.
        tile: (frames, rows, columns) of one tile, each at least 1.
        device: where the order is built.

    Returns:
        (S,) int32, ``order[i]`` is the natural index of the token at position i.

    Raises:
        ValueError: a tile axis is below 1 or beyond the grid.
    """
    if any(not 1 <= t <= n for t, n in zip(tile, layout.grid, strict=True)):
        raise ValueError(f"tile {tile} must lie between (1, 1, 1) and the grid {layout.grid}")
    axes = [torch.arange(n, device=device) for n in layout.grid]
    f, y, x = torch.meshgrid(*axes, indexing="ij")
    counts = [-(-n // t) for n, t in zip(layout.grid, tile, strict=True)]
    key = (f // tile[0] * counts[1] + y // tile[1]) * counts[2] + x // tile[2]
    order = identity_order(layout, device)
    inside = torch.argsort(key.reshape(-1), stable=True).to(torch.int32)
    order[layout.text_before : layout.video_end] = inside + layout.text_before
    return order


def inverse_order(order: Tensor) -> Tensor:
    """Return the order that undoes ``order``: (..., S) integer, same shape and dtype."""
    natural = torch.arange(order.shape[-1], dtype=order.dtype, device=order.device)
    inverse = torch.empty_like(order)
    return inverse.scatter_(-1, order.long(), natural.expand_as(order))
