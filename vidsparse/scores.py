"""What a comparison found, as rows: speed, density, every metric with its interval, a verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from vidsparse.clips import ClipFacts, Scene
from vidsparse.quality import (
    PSNR_OF_EQUAL_FRAMES,
    Quality,
    bootstrap_mean,
    bootstrap_ratio,
    judge,
    mean_psnr,
    pooled_psnr,
)

METRICS = ("psnr", "ssim", "ms_ssim", "lpips", "lpips_vgg", "flicker", "warped_error")


@dataclass
class Record:
    """What one contender made of all scenes.

    Attributes:
        label: the contender's.
        key: its name among the kept clips.
        clips: one entry per scene.
    """

    label: str
    key: str = ""
    clips: list[ClipFacts] = field(default_factory=list)

    @property
    def quality(self) -> list[Quality]:
        """Quality of each clip; empty for the dense reference."""
        return [clip.quality for clip in self.clips if clip.quality is not None]


@dataclass(frozen=True)
class Comparison:
    """The dense reference, the contenders and the floor, over all scenes.

    Attributes:
        scenes: prompts and seeds.
        dense: the reference.
        contenders: in the order given.
        floor: another dense run; None when none was made.
        strangers: per scene, SSIM of the dense clip to another one; None for a single scene.
    """

    scenes: tuple[Scene, ...]
    dense: Record
    contenders: tuple[Record, ...]
    floor: Record | None = None
    strangers: tuple[float, ...] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON-ready row per contender, in the order given, and the floor's last."""
        rows = [self._row(record, "method") for record in self.contenders]
        return rows if self.floor is None else [*rows, self._row(self.floor, "floor")]

    def dense_row(self) -> dict[str, Any]:
        """Return what is known of the dense clips: time and content."""
        return {
            "method": self.dense.label,
            "key": self.dense.key,
            **_time(self.dense),
            "content": _content(self.dense),
            "strangers_ssim": None if self.strangers is None else fmean(self.strangers),
        }

    def _row(self, record: Record, role: str) -> dict[str, Any]:
        prompts = [scene.prompt for scene in self.scenes]
        return {
            "method": record.label,
            "role": role,
            "key": record.key,
            "speedup": _seconds(self.dense) / _seconds(record),
            "timed_apart": _timed_apart(record, self.dense),
            **_density(record),
            **_metrics(record.quality),
            "verdict": "the floor" if role == "floor" else None,
            **({} if role == "floor" else self._verdict(record)),
            "intervals": _intervals(record, self.dense, prompts),
            **_time(record),
            "content": _content(record),
            "calls": [clip.calls for clip in record.clips if clip.calls is not None],
        }

    def _verdict(self, record: Record) -> dict[str, Any]:
        floor = None if self.floor is None else self.floor.quality
        prompts = [scene.prompt for scene in self.scenes]
        found = judge(record.quality, floor, self.strangers, _losses(record, self.dense), prompts)
        return {
            "verdict": found.name,
            "reason": found.reason,
            "kept": found.kept,
            "position": found.position,
        }


def _metrics(clips: Sequence[Quality]) -> dict[str, Any]:
    """Average over clips; JSON knows no infinity: null with identical true."""
    psnr = mean_psnr(tuple(quality.mean_psnr for quality in clips))
    pooled = pooled_psnr([value for quality in clips for value in quality.psnr])
    return {
        "psnr": None if math.isinf(psnr) else psnr,
        "psnr_pooled": None if math.isinf(pooled) else pooled,
        "identical": math.isinf(psnr),
        "ssim": fmean(quality.mean_ssim for quality in clips),
        "ms_ssim": _mean(clips, "mean_ms_ssim"),
        "ms_ssim_scales": clips[0].ms_ssim_scales,
        "lpips": _known(_mean(clips, "mean_lpips"), clips[0].lpips_note),
        "lpips_vgg": _known(_mean(clips, "mean_lpips_vgg"), clips[0].lpips_vgg_note),
        "flicker": _mean(clips, "mean_flicker"),
        "warped_error": _mean(clips, "excess_warped_error"),
    }


def _mean(clips: Sequence[Quality], name: str) -> float | None:
    values = [getattr(quality, name) for quality in clips]
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _known(value: float | None, note: str | None) -> float | str | None:
    """Return a value, or the note that says why there is none."""
    return note if value is None else value


def _intervals(record: Record, dense: Record, prompts: Sequence[str]) -> dict[str, Any]:
    """Return mean, spread and interval over clips, of speed-up and every metric.

    The speed-up is that of the row, the ratio of total times.
    """
    above, below = ([clip.denoise_seconds for clip in one.clips] for one in (dense, record))
    found = {"speedup": bootstrap_ratio(above, below, prompts).as_dict()}
    means = [quality.means() for quality in record.quality]
    series = {name: [mean[name] for mean in means] for name in METRICS}
    for name, values in series.items():
        known = [min(value, PSNR_OF_EQUAL_FRAMES) for value in values if value is not None]
        if len(known) == len(values):
            found[name] = bootstrap_mean(known, prompts).as_dict()
    return found


def _seconds(record: Record) -> float:
    return sum(clip.denoise_seconds for clip in record.clips)


def _timed_apart(record: Record, dense: Record) -> bool:
    """Say whether a clip was made in another run than its dense clip, on a machine as it was."""
    return any(a.run != b.run for a, b in zip(record.clips, dense.clips, strict=True))


def _time(record: Record) -> dict[str, Any]:
    return {"clips": len(record.clips), "denoise_seconds": _seconds(record) / len(record.clips)}


def _density(record: Record) -> dict[str, float | None]:
    """Average over scenes; a contender without sparse calls has density 1."""
    calls = [clip.calls for clip in record.clips if clip.calls is not None]
    sparse = [one["density"] for one in calls if one["density"] is not None]
    overall = [one["overall_density"] for one in calls]
    return {
        "density": fmean(sparse) if sparse else 1.0,
        "overall_density": fmean(overall) if overall else 1.0,
    }


def _content(record: Record) -> dict[str, float] | None:
    """Return how often shape, colour and direction are the caption's; None without a judge."""
    known = [clip.content for clip in record.clips if clip.content is not None]
    if len(known) < len(record.clips):
        return None
    return {name: fmean(float(content[name]) for content in known) for name in known[0]}


def _losses(record: Record, dense: Record) -> list[bool] | None:
    """Say per clip whether something is wrong that is right in the dense clip."""
    pairs = [(a.content, b.content) for a, b in zip(dense.clips, record.clips, strict=True)]
    if any(truth is None or mine is None for truth, mine in pairs):
        return None
    return [
        any(right and not mine[name] for name, right in truth.items())
        for truth, mine in pairs
        if truth is not None and mine is not None
    ]
