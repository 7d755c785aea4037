"""Compare a video with its dense reference: PSNR, SSIM and LPIPS, per frame and on average.

All functions take (F, 3, H, W) floats in [0, 1], as pipelines return them before encoding.
"""

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from vidsparse.errors import VidsparseError

# A frame that equals its reference has infinite PSNR. In a mean with frames that do not, it
# counts this much, so that one such frame does not hide the others.
PSNR_OF_EQUAL_FRAMES = 100.0

_BACKBONE = "alexnet-owt-7be5be79.pth"
_GET_BACKBONE = "python -c \"from torchvision.models import alexnet; alexnet(weights='DEFAULT')\""
NO_BACKBONE = f"unavailable: get AlexNet's weights with {_GET_BACKBONE}"


class MetricUnavailableError(VidsparseError):
    """A metric that needs a file this machine does not have; the message says how to get it."""


@dataclass(frozen=True)
class Quality:
    """How close a video is to its reference.

    Attributes:
        psnr: per frame, in dB; infinite for a frame equal to its reference.
        ssim: per frame, in [-1, 1].
        lpips: per frame, 0 for equal frames; None when unavailable.
        lpips_note: why LPIPS is unavailable and how to get it.
    """

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    lpips: tuple[float, ...] | None
    lpips_note: str | None = None

    @property
    def identical(self) -> bool:
        """Whether every frame equals its reference."""
        return all(math.isinf(value) for value in self.psnr)

    @property
    def mean_psnr(self) -> float:
        """Mean over frames in dB; infinite when the videos are identical."""
        return mean_psnr(self.psnr)

    @property
    def mean_ssim(self) -> float:
        """Mean over frames."""
        return fmean(self.ssim)

    @property
    def mean_lpips(self) -> float | None:
        """Mean over frames; None when unavailable."""
        return None if self.lpips is None else fmean(self.lpips)


def mean_psnr(values: tuple[float, ...]) -> float:
    """Average PSNR in dB; infinite only when all values are (see ``PSNR_OF_EQUAL_FRAMES``)."""
    if all(math.isinf(value) for value in values):
        return math.inf
    return fmean(PSNR_OF_EQUAL_FRAMES if math.isinf(value) else value for value in values)


def compare_videos(video: Tensor, reference: Tensor, *, lpips: "Lpips | str") -> Quality:
    """Measure a video against its reference.

    Args:
        video: (F, 3, H, W) floats in [0, 1].
        reference: same shape.
        lpips: the loaded metric, or the note that says why there is none (``load_lpips``).

    Raises:
        ValueError: shapes differ or are no videos.
    """
    _check(video, reference)
    note = lpips if isinstance(lpips, str) else None
    values = None if isinstance(lpips, str) else tuple(lpips(video, reference).tolist())
    psnr = tuple(psnr_per_frame(video, reference).tolist())
    ssim = tuple(ssim_per_frame(video, reference).tolist())
    return Quality(psnr=psnr, ssim=ssim, lpips=values, lpips_note=note)


def psnr_per_frame(video: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each frame: (F,) in dB, infinite for equal frames.

    Args:
        video: (F, 3, H, W) floats in [0, 1].
        reference: same shape.

    Raises:
        ValueError: shapes differ or are no videos.
    """
    _check(video, reference)
    error = (video.double() - reference.double()).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error)


def ssim_per_frame(video: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity of each frame: (F,) in [-1, 1].

    Args:
        video: (F, 3, H, W) floats in [0, 1].
        reference: same shape.

    Raises:
        ValueError: shapes differ or are no videos.

    Source: Wang et al. 2004; torchmetrics with its defaults (Gaussian window, sigma 1.5).
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check(video, reference)
    values: Tensor = structural_similarity_index_measure(
        video.float(), reference.float(), data_range=1.0, reduction="none"
    )
    return values.reshape(-1)


class Lpips:
    """LPIPS with the AlexNet backbone, the variant video papers report.

    Raises:
        MetricUnavailableError: the backbone's weights are not in torch's cache. They are never
            fetched here, and never replaced by random ones.

    Source: Zhang et al. 2018, arXiv:1801.03924; weights v0.1 of the ``lpips`` package.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        file = backbone_file()
        if not file.is_file():
            raise MetricUnavailableError(NO_BACKBONE)
        import lpips

        try:
            self._net: Any = lpips.LPIPS(net="alex", verbose=False).to(device)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise MetricUnavailableError(
                f"unavailable: {file} is damaged; delete it, then {_GET_BACKBONE}"
            ) from error
        self._device = device

    @torch.no_grad()
    def __call__(self, video: Tensor, reference: Tensor) -> Tensor:
        """Return the distance of each frame: (F,), 0 for equal frames; inputs in [0, 1]."""
        _check(video, reference)
        pairs = zip(video.split(8), reference.split(8), strict=True)
        values = [self._net(self._signed(a), self._signed(b)).reshape(-1) for a, b in pairs]
        return torch.cat(values).cpu()

    def _signed(self, frames: Tensor) -> Tensor:
        """Map [0, 1] to [-1, 1], what the network was trained on."""
        return frames.to(self._device, torch.float32) * 2 - 1


def backbone_file() -> Path:
    """Return where torch keeps AlexNet's weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONE


def load_lpips(device: torch.device | str = "cpu") -> Lpips | str:
    """Return the metric, or the note that says why it is unavailable and how to get it."""
    try:
        return Lpips(device)
    except MetricUnavailableError as error:
        return str(error)


def _check(video: Tensor, reference: Tensor) -> None:
    if video.shape != reference.shape or video.dim() != 4 or video.shape[1] != 3:
        raise ValueError(
            f"videos must be (F, 3, H, W) of one shape; got {tuple(video.shape)} "
            f"and {tuple(reference.shape)}"
        )
