"""Token grids from the shapes of latents."""

from collections.abc import Sequence
from typing import Any


def grid_of(latents: Any, patch: Sequence[int], axes: str = "BCFHW") -> tuple[int, int, int]:
    """Return the (frames, height, width) of the tokens a transformer makes of its latents.

    Args:
        latents: the tensor as the transformer gets it.
        patch: latent frames, rows and columns of one token.
        axes: what its axes are, one letter each.
    """
    sizes = dict(zip(axes, latents.shape, strict=True))
    frames, height, width = (sizes[axis] // p for axis, p in zip("FHW", patch, strict=True))
    return frames, height, width


def tokens_of(latents: Any, patch: Sequence[int]) -> int:
    """Return how many tokens padded latents (B, C, F, H, W) make; 0 for None.

    Args:
        latents: history or condition latents, padded up to whole patches by the transformer.
        patch: latent frames, rows and columns of one token.
    """
    if latents is None:
        return 0
    frames, height, width = (-(-n // p) for n, p in zip(latents.shape[2:], patch, strict=True))
    return int(frames * height * width)
