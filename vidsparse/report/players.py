"""Videos of one scene as tiles of a single one, so that players cannot run apart.

A browser decodes one video; each player draws its tile of the frame on screen. Dense, every
method and every difference to dense are then in step by construction, however slow the machine.
"""

import math
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vidsparse.video import TO_YUV, encode

# What decoders of browsers take without complaint: H.264 level 5.1 and most hardware.
_MOST_PIXELS = 4096 * 2304
_MOST_SIDE = 4096
# Tiles start at macroblocks, so that none bleeds into its neighbour.
_GRAIN = 16
# Differences are coloured up to the value that this share of all pixels stays under.
_BRIGHT_SHARE = 0.995
_LEAST_SCALE = 0.02
# Clips whose shorter side is less are enlarged by whole pixels.
_LEAST_SIDE = 256
# Every eighth frame can be jumped to; no frame needs a later one.
_ENCODER = (
    *("-vf", f"{TO_YUV},format=yuv420p", "-c:v", "libx264", "-preset", "medium", "-crf", "17"),
    *("-g", "8", "-bf", "0", "-color_range", "tv", "-colorspace", "bt709"),
    *("-color_primaries", "bt709", "-color_trc", "bt709", "-movflags", "+faststart"),
)


@dataclass(frozen=True)
class Tiles:
    """One video that holds others.

    Attributes:
        video: base64 of an MP4.
        frames: number of frames.
        width: of a tile's picture, in pixels of this video.
        height: alike.
        places: (x, y) of each tile's upper left corner: the clips, then their differences.
        heat_scale: difference that is drawn brightest, in [0, 1].
    """

    video: str
    frames: int
    width: int
    height: int
    places: tuple[tuple[int, int], ...]
    heat_scale: float

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values without the video."""
        return {
            "frames": self.frames,
            "width": self.width,
            "height": self.height,
            "places": self.places,
            "heatScale": self.heat_scale,
        }


def make_tiles(clips: Sequence[np.ndarray], fps: float) -> Tiles:
    """Lay out clips and their differences to the first one, and encode them.

    Args:
        clips: (F, H, W, 3) uint8 each, all of one shape; the first one is the reference.
        fps: frames per second.
    """
    scale = _heat_scale(clips)
    frames, *size = clips[0].shape[:3]
    count = 2 * len(clips) - 1
    height, width = _fitted_size(count, size[0], size[1])
    columns, rows = _grid(count, width, height)
    step_x, step_y = _padded(width), _padded(height)
    places = [(i % columns * step_x, i // columns * step_y) for i in range(count)]
    canvas = np.zeros((frames, rows * step_y, columns * step_x, 3), np.uint8)
    # Frame by frame: differences of whole videos would take gigabytes.
    for t in range(frames):
        for (x, y), tile in zip(places, _tiles_of_frame(clips, t, scale), strict=True):
            fitted = _resized(tile, height, width)
            pad = ((0, step_y - height), (0, step_x - width), (0, 0))
            canvas[t, y : y + step_y, x : x + step_x] = np.pad(fitted, pad, mode="edge")
    return Tiles(_encoded(canvas, fps), frames, width, height, tuple(places), scale)


def _tiles_of_frame(clips: Sequence[np.ndarray], t: int, scale: float) -> Iterator[np.ndarray]:
    yield from (clip[t] for clip in clips)
    for clip in clips[1:]:
        level = np.clip(_difference(clip[t], clips[0][t]) / scale, 0, 1) * 255
        coloured = cv2.applyColorMap(level.round().astype(np.uint8), cv2.COLORMAP_INFERNO)
        yield cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB)


def _difference(frame: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference over channels, (H, W) float32 in [0, 1]."""
    return np.asarray(np.abs(frame.astype(np.float32) - reference).mean(-1) / 255)


def _heat_scale(clips: Sequence[np.ndarray]) -> float:
    """Return one scale for all, so that colours compare between methods."""
    looked_at = range(0, len(clips[0]), max(1, len(clips[0]) // 12))
    found = [
        np.quantile([_difference(clip[t], clips[0][t]) for t in looked_at], _BRIGHT_SHARE)
        for clip in clips[1:]
    ]
    return max(_LEAST_SCALE, round(float(max(found, default=0)), 3))


def _fitted_size(count: int, height: int, width: int) -> tuple[int, int]:
    """Enlarge small clips, whose colour H.264 would blur; shrink where a browser would balk."""
    factor = max(1, round(_LEAST_SIDE / min(height, width)))
    height, width = height * factor, width * factor
    columns, rows = _grid(count, width, height)
    area = columns * rows * _padded(width) * _padded(height)
    side = max(columns * _padded(width), rows * _padded(height))
    shrink = min(1.0, math.sqrt(_MOST_PIXELS / area), _MOST_SIDE / side)
    if shrink == 1:
        return height, width
    return int(height * shrink) - _GRAIN // 2, int(width * shrink) - _GRAIN // 2


def _resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    larger = height > frame.shape[0]
    how = cv2.INTER_NEAREST if larger else cv2.INTER_AREA
    return np.asarray(cv2.resize(frame, (width, height), interpolation=how))


def _grid(count: int, width: int, height: int) -> tuple[int, int]:
    """Return columns and rows that make the whole as square as can be."""
    columns = max(1, round(math.sqrt(count * height / width)))
    return columns, -(-count // columns)


def _padded(size: int) -> int:
    return -(-size // _GRAIN) * _GRAIN


def _encoded(frames: np.ndarray, fps: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiles.mp4"
        encode(path, frames, fps, _ENCODER)
        return b64encode(path.read_bytes()).decode()
