"""What quality is asked for, and whether a result has it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.quality import (
    PSNR_OF_EQUAL_FRAMES,
    Lpips,
    mean_psnr,
    psnr_per_frame,
    ssim_per_frame,
)

# What counts as one unit of slack: differences a viewer may notice.
_PSNR_UNIT, _SSIM_UNIT, _LPIPS_UNIT = 1.0, 0.01, 0.01


@dataclass(frozen=True)
class Scores:
    """Means over the frames of a clip, or over clips, against dense.

    Attributes:
        psnr: in dB, at most ``PSNR_OF_EQUAL_FRAMES``.
        ssim: in [-1, 1].
        lpips: None when unavailable.
    """

    psnr: float
    ssim: float
    lpips: float | None = None

    @classmethod
    def of(cls, video: Tensor, reference: Tensor, lpips: Lpips | str) -> "Scores":
        """Measure a clip, by no more than a target can bound.

        Args:
            video: (F, 3, H, W) floats in [0, 1], on any device.
            reference: the dense clip, alike.
            lpips: the metric, or why there is none.
        """
        psnr = mean_psnr(psnr_per_frame(video, reference).tolist())
        ssim = fmean(ssim_per_frame(video, reference).tolist())
        far = None if isinstance(lpips, str) else fmean(lpips(video, reference).tolist())
        return cls(min(psnr, PSNR_OF_EQUAL_FRAMES), ssim, far)

    @classmethod
    def mean(cls, scores: Sequence["Scores"]) -> "Scores":
        """Average over clips."""
        known = [score.lpips for score in scores if score.lpips is not None]
        return cls(
            fmean(score.psnr for score in scores),
            fmean(score.ssim for score in scores),
            fmean(known) if len(known) == len(scores) else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the numbers for people."""
        lpips = "" if self.lpips is None else f", LPIPS {self.lpips:.4f}"
        return f"{self.psnr:.2f} dB, SSIM {self.ssim:.4f}{lpips}"


@dataclass(frozen=True)
class Target:
    """Bounds that all must hold; means over clips.

    Attributes:
        min_psnr: in dB.
        min_ssim: in (0, 1].
        max_lpips: at least 0.

    Raises:
        UsageError: no bound is given, or one is out of range.
    """

    min_psnr: float | None = None
    min_ssim: float | None = None
    max_lpips: float | None = None

    def __post_init__(self) -> None:
        if self.min_psnr is None and self.min_ssim is None and self.max_lpips is None:
            raise UsageError("say what quality is needed: --min-psnr, --min-ssim or --max-lpips")
        if self.min_psnr is not None and not 0 < self.min_psnr < PSNR_OF_EQUAL_FRAMES:
            raise UsageError(
                f"min_psnr={self.min_psnr} must lie in (0, {PSNR_OF_EQUAL_FRAMES:g}), in dB; "
                "usual values are 20 to 35"
            )
        if self.min_ssim is not None and not 0 < self.min_ssim <= 1:
            raise UsageError(f"min_ssim={self.min_ssim} must lie in (0, 1]")
        if self.max_lpips is not None and not 0 < self.max_lpips < math.inf:
            raise UsageError(
                f"max_lpips={self.max_lpips} must be a finite number above 0; usual values are 0.1"
            )

    def slack(self, scores: Scores) -> float:
        """Return the room left in the tightest bound, negative when missed.

        One unit is 1 dB, 0.01 of SSIM or 0.01 of LPIPS.

        Raises:
            UsageError: LPIPS is bounded and was not measured.
        """
        room = []
        if self.min_psnr is not None:
            room.append((scores.psnr - self.min_psnr) / _PSNR_UNIT)
        if self.min_ssim is not None:
            room.append((scores.ssim - self.min_ssim) / _SSIM_UNIT)
        if self.max_lpips is not None:
            if scores.lpips is None:
                raise UsageError("--max-lpips needs LPIPS, which is unavailable here")
            room.append((self.max_lpips - scores.lpips) / _LPIPS_UNIT)
        return min(room)

    def as_dict(self) -> dict[str, float]:
        """Return the bounds that are given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def met_by(self, scores: Scores) -> bool:
        """Say whether all bounds hold."""
        return self.slack(scores) >= 0

    def __str__(self) -> str:
        """Return the bounds for people."""
        parts = []
        if self.min_psnr is not None:
            parts.append(f"PSNR >= {self.min_psnr:g} dB")
        if self.min_ssim is not None:
            parts.append(f"SSIM >= {self.min_ssim:g}")
        if self.max_lpips is not None:
            parts.append(f"LPIPS <= {self.max_lpips:g}")
        return " and ".join(parts)
