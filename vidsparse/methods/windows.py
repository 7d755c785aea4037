"""Choose the tile of a video grid that becomes one block of the kernel."""

import math
from functools import lru_cache

# Longer side over shorter side of a window: longer ones average over unrelated picture parts.
_MAX_ASPECT = 4.0
# Exact tilings may need this many times the fewest windows before unequal ones are preferred.
_EXACT_MAY_NEED = 1.7


def exact_window(height: int, width: int, max_tokens: int) -> tuple[int, int]:
    """Return the largest (rows, columns) window that tiles a frame exactly.

    Of equally large windows the squarest wins. A frame whose divisors allow no window up to an
    aspect of 4 gets (1, 1).

    Args:
        height: rows of the token grid.
        width: columns of the token grid.
        max_tokens: tokens of a window at most.

    Source: research on DraftAttention, arXiv:2505.14708, which itself needs multiples of 8 x 16.
    """
    windows = [
        (h, w)
        for h in _divisors(height)
        for w in _divisors(width)
        if h * w <= max_tokens and _aspect(h, w) <= _MAX_ASPECT
    ]
    return min(windows, key=_larger_then_squarer)


@lru_cache(maxsize=64)
def choose_tile(
    grid: tuple[int, int, int], max_tokens: int, *, frames: int = 1
) -> tuple[int, int, int]:
    """Choose the (frames, rows, columns) tile of a grid for blocks of ``max_tokens``.

    An exact tiling with all tiles equal is taken where its tiles are large enough; else tiles at
    the far edges are smaller and the number of tiles is the least possible.

    Args:
        grid: (frames, height, width).
        max_tokens: tokens of a tile at most, the kernels' block.
        frames: frames of a tile; 1 pools every frame by itself.

    Raises:
        ValueError: ``frames`` is below 1, beyond the grid or beyond ``max_tokens``.
    """
    F, height, width = grid
    if not 1 <= frames <= min(F, max_tokens):
        raise ValueError(
            f"frames={frames} per tile must lie in 1..{min(F, max_tokens)} for a grid of {grid} "
            f"and blocks of {max_tokens} tokens"
        )
    area = max_tokens // frames
    exact, ragged = exact_window(height, width, area), _ragged_window(height, width, area)
    fewest = _count(height, width, ragged)
    enough = _count(height, width, exact) <= _EXACT_MAY_NEED * fewest
    return (frames, *(exact if enough else ragged))


def choose_strips(grid: tuple[int, int, int], block: int, *, frames: int = 1) -> int:
    """Return how many strips of a frame make blocks of ``block`` tokens about square.

    Args:
        grid: (frames, height, width).
        block: tokens of a block.
        frames: frames that share a block.
    """
    side = math.sqrt(block / frames)
    return min(grid[1], max(1, round(grid[1] / side)))


def choose_frames(frames: int, block: int) -> int:
    """Return how many frames a block should reach over to be about as deep as it is wide.

    Args:
        frames: F, frames of the grid.
        block: tokens of a block.
    """
    return max(1, min(frames, round(math.cbrt(block))))


def tile_count(grid: tuple[int, int, int], tile: tuple[int, int, int]) -> int:
    """Return how many tiles cover a grid."""
    return math.prod(-(-n // t) for n, t in zip(grid, tile, strict=True))


def _ragged_window(height: int, width: int, area: int) -> tuple[int, int]:
    """Return the window with the fewest cells, its edges as even as possible, then squarest."""
    best = None
    for h in range(1, min(height, area) + 1):
        w = min(width, area // h)
        # The same number of cells with the most even sides.
        even = (-(-height // -(-height // h)), -(-width // -(-width // w)))
        key = (_count(height, width, even), _aspect(*even), even)
        best = key if best is None else min(best, key)
    if best is None:
        raise ValueError(f"a window needs room for one token, got {area}")
    return best[2]


def _count(height: int, width: int, window: tuple[int, int]) -> int:
    return -(-height // window[0]) * -(-width // window[1])


def _aspect(h: int, w: int) -> float:
    return max(h, w) / min(h, w)


def _larger_then_squarer(window: tuple[int, int]) -> tuple[int, float, tuple[int, int]]:
    h, w = window
    return -h * w, abs(math.log(h / w)), window


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
