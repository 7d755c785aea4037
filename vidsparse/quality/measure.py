"""Measure a video against its dense reference by every metric at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

from torch import Tensor

from vidsparse.quality.frames import (
    check_pair,
    mean_psnr,
    ms_ssim_per_frame,
    ms_ssim_scales,
    pooled_psnr,
    psnr_per_frame,
    ssim_per_frame,
)
from vidsparse.quality.perceptual import Lpips
from vidsparse.quality.temporal import flicker_per_step, warped_error_per_step

NOT_ASKED = "unavailable: not asked for"


@dataclass(frozen=True)
class Quality:
    """How close a video is to its reference.

    Attributes:
        psnr: per frame, in dB; infinite for a frame equal to its reference.
        ssim: per frame, in [-1, 1].
        lpips: AlexNet's, per frame, 0 for equal frames; None when unavailable.
        lpips_note: why LPIPS is unavailable and how to get it.
        lpips_vgg: VGG16's, alike.
        lpips_vgg_note: alike.
        ms_ssim: per frame, in [0, 1]; None for frames under 11 pixels.
        ms_ssim_scales: scales that went into it, 5 unless the frames are small.
        flicker: per step from frame to frame, in [0, 2] (``flicker_per_step``).
        warped_error: per step, mean squared; None for frames under 16 pixels, NaN for a cut.
        warped_error_reference: the same of the reference itself.
    """

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    lpips: tuple[float, ...] | None
    lpips_note: str | None = None
    lpips_vgg: tuple[float, ...] | None = None
    lpips_vgg_note: str | None = NOT_ASKED
    ms_ssim: tuple[float, ...] | None = None
    ms_ssim_scales: int = 0
    flicker: tuple[float, ...] = ()
    warped_error: tuple[float, ...] | None = None
    warped_error_reference: tuple[float, ...] | None = None

    @property
    def identical(self) -> bool:
        """Whether every frame equals its reference."""
        return all(math.isinf(value) for value in self.psnr)

    @property
    def mean_psnr(self) -> float:
        """Mean of the frames' PSNR in dB; infinite when the videos are identical."""
        return mean_psnr(self.psnr)

    @property
    def pooled_psnr(self) -> float:
        """PSNR in dB of the squared error pooled over frames; infinite when identical."""
        return pooled_psnr(self.psnr)

    @property
    def mean_ssim(self) -> float:
        """Mean over frames."""
        return fmean(self.ssim)

    @property
    def mean_ms_ssim(self) -> float | None:
        """Mean over frames; None when the frames are too small."""
        return _mean(self.ms_ssim)

    @property
    def mean_lpips(self) -> float | None:
        """Mean over frames, AlexNet; None when unavailable."""
        return _mean(self.lpips)

    @property
    def mean_lpips_vgg(self) -> float | None:
        """Mean over frames, VGG16; None when unavailable."""
        return _mean(self.lpips_vgg)

    @property
    def mean_flicker(self) -> float | None:
        """Mean over steps; None for a single frame."""
        return _mean(self.flicker)

    @property
    def excess_warped_error(self) -> float | None:
        """Mean over steps of the warped error beyond the reference's own; None without any.

        Negative where the video is steadier than its reference.
        """
        pairs = zip(self.warped_error or (), self.warped_error_reference or (), strict=True)
        return _mean([a - b for a, b in pairs if not math.isnan(a - b)])

    def means(self) -> dict[str, float | None]:
        """Return one number per metric, by the names that tables and JSON use."""
        return {
            "psnr": self.mean_psnr,
            "psnr_pooled": self.pooled_psnr,
            "ssim": self.mean_ssim,
            "ms_ssim": self.mean_ms_ssim,
            "lpips": self.mean_lpips,
            "lpips_vgg": self.mean_lpips_vgg,
            "flicker": self.mean_flicker,
            "warped_error": self.excess_warped_error,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values; null stands for an infinite PSNR and for a step without flow."""
        return {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Quality":
        """Read what ``as_dict`` returned."""
        read = {key: _from_json(value, key) for key, value in values.items()}
        return Quality(**read)


def compare_videos(
    video: Tensor, reference: Tensor, *, lpips: Lpips | str, lpips_vgg: Lpips | str = NOT_ASKED
) -> Quality:
    """Measure a video against its reference.

    Args:
        video: (F, 3, H, W) floats in [0, 1].
        reference: same shape.
        lpips: the loaded metric, or the note that says why there is none (``load_lpips``).
        lpips_vgg: the same with VGG16.

    Raises:
        ValueError: shapes differ or are no videos.
    """
    check_pair(video, reference)
    side = min(video.shape[2:])
    warped = warped_error_per_step(video, reference) if side >= 16 else (None, None)
    scales = ms_ssim_scales(*video.shape[2:])
    return Quality(
        psnr=_values(psnr_per_frame(video, reference)),
        ssim=_values(ssim_per_frame(video, reference)),
        lpips=_perceptual(lpips, video, reference),
        lpips_note=lpips if isinstance(lpips, str) else None,
        lpips_vgg=_perceptual(lpips_vgg, video, reference),
        lpips_vgg_note=lpips_vgg if isinstance(lpips_vgg, str) else None,
        ms_ssim=_values(ms_ssim_per_frame(video, reference)) if scales else None,
        ms_ssim_scales=scales,
        flicker=_values(flicker_per_step(video, reference)),
        warped_error=None if warped[0] is None else _values(warped[0]),
        warped_error_reference=None if warped[1] is None else _values(warped[1]),
    )


def _perceptual(metric: Lpips | str, video: Tensor, reference: Tensor) -> tuple[float, ...] | None:
    return None if isinstance(metric, str) else _values(metric(video, reference))


def _values(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def _mean(values: Sequence[float] | None) -> float | None:
    return fmean(values) if values else None


def _to_json(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    return [item if math.isfinite(item) else None for item in value]


def _from_json(value: Any, key: str) -> Any:
    if not isinstance(value, list):
        return value
    missing = math.inf if key == "psnr" else math.nan
    return tuple(missing if item is None else item for item in value)
