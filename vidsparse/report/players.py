"""Videos of one scene as tiles of a single one, so that players cannot run apart.

A browser decodes one video; each player draws its tile of the frame on screen. Dense, every
method and every difference to dense are then in step by construction, however slow the machine.
"""

import math
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vidsparse.pictures import enlarged
from vidsparse.video import TO_YUV, encode

# What decoders of browsers take without complaint: H.264 level 5.1 and most hardware.
_MOST_PIXELS = 4096 * 2304
_MOST_SIDE = 4096
# Tiles start at macroblocks, so that none bleeds into its neighbour.
_GRAIN = 16
# Differences are coloured up to the value that this share of all pixels stays under.
_BRIGHT_SHARE = 0.995
_LEAST_SCALE = 0.02
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
    differences = [_difference(clip, clips[0]) for clip in clips[1:]]
    scale = _heat_scale(differences)
    heats = [_heat(difference, scale) for difference in differences]
    shown = _fitted([*clips, *heats])
    frames, height, width = shown[0].shape[:3]
    columns, rows = _grid(len(shown), width, height)
    step_x, step_y = _padded(width), _padded(height)
    canvas = np.zeros((frames, rows * step_y, columns * step_x, 3), np.uint8)
    places = []
    for index, clip in enumerate(shown):
        x, y = index % columns * step_x, index // columns * step_y
        pad = ((0, 0), (0, step_y - height), (0, step_x - width), (0, 0))
        canvas[:, y : y + step_y, x : x + step_x] = np.pad(clip, pad, mode="edge")
        places.append((x, y))
    return Tiles(_encoded(canvas, fps), frames, width, height, tuple(places), scale)


def _difference(clip: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference over channels, (F, H, W) float32 in [0, 1]."""
    pairs = zip(clip, reference, strict=True)
    found = [np.abs(a.astype(np.float32) - b.astype(np.float32)).mean(-1) / 255 for a, b in pairs]
    return np.stack(found)


def _heat_scale(differences: Sequence[np.ndarray]) -> float:
    """Return one scale for all, so that colours compare between methods."""
    if not differences:
        return _LEAST_SCALE
    found = max(float(np.quantile(one, _BRIGHT_SHARE)) for one in differences)
    return max(_LEAST_SCALE, round(found, 3))


def _heat(difference: np.ndarray, scale: float) -> np.ndarray:
    level = (np.clip(difference / scale, 0, 1) * 255).round().astype(np.uint8)
    coloured = [cv2.applyColorMap(frame, cv2.COLORMAP_INFERNO) for frame in level]
    return np.stack(coloured)[..., ::-1]


def _fitted(clips: list[np.ndarray]) -> list[np.ndarray]:
    """Enlarge small clips, whose colour H.264 would blur; shrink where a browser would balk."""
    clips = [enlarged(clip, least=256) for clip in clips]
    height, width = clips[0].shape[1:3]
    columns, rows = _grid(len(clips), width, height)
    area = columns * rows * _padded(width) * _padded(height)
    side = max(columns * _padded(width), rows * _padded(height))
    factor = min(1.0, math.sqrt(_MOST_PIXELS / area), _MOST_SIDE / side)
    if factor == 1:
        return clips
    size = (int(width * factor) - _GRAIN // 2, int(height * factor) - _GRAIN // 2)
    return [
        np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in clip])
        for clip in clips
    ]


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
