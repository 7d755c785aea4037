"""Lay clips side by side and on contact sheets."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from vidsparse.files import replacing

_LABEL_HEIGHT = 22
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GAP = 4
# H.264's limit, in pixels.
_WIDEST = 16384


def side_by_side(clips: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Lay clips next to each other under their labels, in rows where one would be too wide.

    Args:
        clips: label and (F, H, W, 3) uint8 frames each, all of one shape.

    Returns:
        (F, H', W', 3) uint8; small clips are enlarged to be seen.
    """
    tiles = [_labelled(label, frames) for label, frames in clips]
    across = _tiles_across(len(tiles), *tiles[0].shape[1:3])
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % across)
    rows = [_join(tiles[i : i + across], axis=2) for i in range(0, len(tiles), across)]
    return _join(rows, axis=1)


def _tiles_across(count: int, height: int, width: int) -> int:
    """Return how many tiles lie in a row: all, or what makes the whole about square."""
    if count * (width + _GAP) - _GAP <= _WIDEST:
        return count
    return math.ceil(math.sqrt(count * height / width))


def contact_sheet(clips: Sequence[tuple[str, np.ndarray]], *, columns: int = 6) -> np.ndarray:
    """Lay out evenly spaced frames: one row per clip, time from left to right.

    Args:
        clips: label and (F, H, W, 3) uint8 frames each.
        columns: frames shown of each clip, at most.

    Returns:
        (H', W', 3) uint8.
    """
    rows = []
    for label, frames in clips:
        picked = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        strip = _join([frame[None] for frame in _enlarged(frames[picked])], axis=2)
        rows.append(np.concatenate([_label_bar(label, strip.shape[2])[None], strip], axis=1))
    return np.asarray(_join(rows, axis=1)[0])


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
    """Encode an (H, W, 3) uint8 RGB picture as PNG."""
    return bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1])


def _labelled(label: str, frames: np.ndarray) -> np.ndarray:
    frames = _enlarged(frames)
    bar = _label_bar(label, frames.shape[2])
    return np.concatenate([np.repeat(bar[None], len(frames), axis=0), frames], axis=1)


def _enlarged(frames: np.ndarray, least: int = 240) -> np.ndarray:
    """Repeat pixels until a frame's shorter side has ``least`` pixels."""
    factor = max(1, round(least / min(frames.shape[1:3])))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _label_bar(label: str, width: int) -> np.ndarray:
    bar = np.full((_LABEL_HEIGHT, width, 3), 255, np.uint8)
    (text_width, _), _ = cv2.getTextSize(label, _FONT, 0.45, 1)
    scale = 0.45 * min(1.0, (width - 8) / max(text_width, 1))
    cv2.putText(bar, label, (4, 15), _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def _join(parts: Sequence[np.ndarray], *, axis: int) -> np.ndarray:
    """Concatenate with a white gap between parts."""
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=axis)
