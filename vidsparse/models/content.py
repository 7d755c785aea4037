"""Score a generated clip against its caption without an eye: colour, shape, direction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vidsparse.models import grammar
from vidsparse.models.grammar import Caption, ObjectCaption, parse_caption
from vidsparse.models.shapes import shape_distance

TEMPLATE = 48  # pixels of a shape template's side
MIN_SATURATION = 0.55
MIN_VALUE = 0.45
# A mask smaller than this share of the shorter side squared is noise, not an object.
MIN_AREA = 0.004
SEEN_FRAMES = 0.6

Mask = NDArray[np.bool_]
Video = NDArray[np.float32]


@dataclass(frozen=True)
class ContentScore:
    """Whether every object of the caption is there as described."""

    shape: bool
    colour: bool
    direction: bool


@lru_cache(maxsize=1)
def _templates() -> dict[str, Mask]:
    """Draw each shape, cropped to its bounding box and stretched to a square."""
    line = torch.linspace(-1.5, 1.5, 241)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return {name: _stretch((shape_distance(x, y, name) < 0).numpy()) for name in grammar.SHAPES}


def _stretch(mask: Mask) -> Mask:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    size = (TEMPLATE, TEMPLATE)
    return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR) > 0.5)


def classify_shape(mask: Mask) -> str:
    """Name the shape whose template overlaps a (H, W) mask best (intersection over union)."""
    mine = _stretch(mask)
    overlap = {
        name: (mine & other).sum() / (mine | other).sum() for name, other in _templates().items()
    }
    return max(overlap, key=lambda name: float(overlap[name]))


def colour_masks(frame: NDArray[np.float32]) -> dict[str, Mask]:
    """Split the saturated pixels of (H, W, 3) RGB in [0, 1] by the nearest named hue."""
    hue, saturation, value = cv2.split(cv2.cvtColor(frame, cv2.COLOR_RGB2HSV))
    vivid = (saturation > MIN_SATURATION) & (value > MIN_VALUE)
    hues = np.asarray(list(grammar.COLOURS.values()), dtype=np.float32)
    apart = np.abs((hue[..., None] - hues + 180.0) % 360.0 - 180.0)
    nearest = apart.argmin(-1)
    return {name: vivid & (nearest == index) for index, name in enumerate(grammar.COLOURS)}


def _largest(mask: Mask) -> tuple[Mask, tuple[float, float]] | None:
    """Find the largest connected part and its centroid (x, y) in pixels."""
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return None
    best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    if stats[best, cv2.CC_STAT_AREA] < MIN_AREA * min(mask.shape) ** 2:
        return None
    x, y = centroids[best]
    return np.asarray(labels == best), (float(x), float(y))


@dataclass(frozen=True)
class _Track:
    """What was seen of one colour: frame numbers, centroids, voted shapes, mean area."""

    frames: list[int]
    centres: list[tuple[float, float]]
    shapes: list[str]
    area: float

    @property
    def shape(self) -> str:
        return max(set(self.shapes), key=self.shapes.count) if self.shapes else ""

    def heading(self) -> str:
        """Name the direction of the straight line that fits the track best."""
        if len(self.frames) < 3:
            return ""
        slope = np.polyfit(self.frames, np.asarray(self.centres), 1)[0]
        if float(np.hypot(*slope)) * (self.frames[-1] - self.frames[0]) < 2.0:
            return ""
        return max(
            grammar.DIRECTIONS, key=lambda name: float(np.dot(slope, grammar.DIRECTIONS[name]))
        )


def _track(masks: Sequence[Mask]) -> _Track:
    frames, centres, shapes, areas = [], [], [], []
    for index, mask in enumerate(masks):
        found = _largest(mask)
        if found is not None:
            frames.append(index)
            centres.append(found[1])
            shapes.append(classify_shape(found[0]))
            areas.append(float(found[0].sum()))
    return _Track(frames, centres, shapes, sum(areas) / max(1, len(masks)))


def _tracks(video: Video) -> dict[str, _Track]:
    frames = [colour_masks(frame) for frame in video]
    return {name: _track([masks[name] for masks in frames]) for name in grammar.COLOURS}


def _prepare(video: Any) -> Video:
    array = video.detach().float().cpu().numpy() if torch.is_tensor(video) else np.asarray(video)
    if array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(f"video has shape {array.shape}; give (frames, height, width, 3)")
    return np.ascontiguousarray(array, dtype=np.float32)


def _colour_is_right(
    one: ObjectCaption, tracks: dict[str, _Track], total: int, alone: bool
) -> bool:
    mine = tracks[one.colour]
    seen = len(mine.frames) >= SEEN_FRAMES * total
    rivals = [t.area for name, t in tracks.items() if name != one.colour]
    return seen and (not alone or mine.area > max(rivals))


def score_clip(video: Any, caption: str | Caption) -> ContentScore:
    """Compare a clip with its caption.

    An object has the right colour if pixels of that hue form a connected part in at least 60 %
    of the frames (and, for a caption with one object, larger than any other hue's). Its shape is
    the template that most frames match best; its direction is the nearest of eight to the line
    through its centroids, so it is meant for objects that move, not bounce. Shape and direction
    are taken from the most visible hue when a lone object has the wrong colour.

    Args:
        video: (frames, height, width, 3) tensor or array, RGB in [0, 1].
        caption: a sentence of the grammar or its meaning.

    Returns:
        One verdict each; with several objects, all must be right.

    Raises:
        ValueError: the video's shape is wrong or the caption names no object.
    """
    frames = _prepare(video)
    objects = (parse_caption(caption) if isinstance(caption, str) else caption).objects
    tracks = _tracks(frames)
    alone = len(objects) == 1
    colour = all(_colour_is_right(one, tracks, len(frames), alone) for one in objects)
    loudest = max(tracks.values(), key=lambda track: track.area)
    pairs = [(one, loudest if alone else tracks[one.colour]) for one in objects]
    return ContentScore(
        shape=all(track.shape == one.shape for one, track in pairs),
        colour=colour,
        direction=all(track.heading() == one.direction for one, track in pairs),
    )


def held_out_captions(count: int, seed: int) -> list[Caption]:
    """Draw captions with one moving object of a combination that training never showed.

    Args:
        count: number of captions.
        seed: the same seed gives the same captions.

    Returns:
        Captions without bounces or camera moves, whose direction can be measured.
    """
    rng = np.random.default_rng(seed)
    unseen = [
        (shape, colour, direction)
        for shape in grammar.SHAPES
        for colour in grammar.COLOURS
        for direction in grammar.DIRECTIONS
        if grammar.held_out(shape, colour, direction)
    ]
    return [_draw(rng, *unseen[int(rng.integers(len(unseen)))]) for _ in range(count)]


def _draw(rng: np.random.Generator, shape: str, colour: str, direction: str) -> Caption:
    def any_of(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    one = ObjectCaption(
        shape, colour, direction, any_of(list(grammar.SIZES)), any_of(list(grammar.SPEEDS))
    )
    pattern = any_of(grammar.PATTERNS)
    drifting = pattern in ("stripes", "checks", "clouds") and bool(rng.integers(2))
    return Caption((one,), any_of(list(grammar.BACKGROUND_COLOURS)), pattern, drifting)


def summarise(scores: Sequence[ContentScore], seconds: float) -> dict[str, float]:
    """Average verdicts to fractions in [0, 1]; NaN without clips."""
    total = len(scores)

    def share(count: int) -> float:
        return count / total if total else math.nan

    return {
        "shape": share(sum(s.shape for s in scores)),
        "colour": share(sum(s.colour for s in scores)),
        "direction": share(sum(s.direction for s in scores)),
        "clips": total,
        "seconds": round(seconds, 2),
    }
