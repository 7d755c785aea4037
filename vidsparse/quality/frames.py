"""Compare a video with its reference frame by frame: PSNR, SSIM, MS-SSIM.

All functions take (F, 3, H, W) floats in [0, 1], as pipelines return them before encoding.
"""

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

# A frame that equals its reference has infinite PSNR. In a mean with frames that do not, it
# counts this much, so that one such frame does not hide the others. No frame counts more: one
# value off by one step of 255 in a 720p frame gives 112 dB.
PSNR_OF_EQUAL_FRAMES = 100.0

# Weights of the scales, finest first: Wang, Simoncelli and Bovik 2003.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11
_RADIUS = 5


def check_pair(video: Tensor, reference: Tensor) -> None:
    """Refuse what is no pair of videos; nothing is ever resized or cut.

    Raises:
        ValueError: shapes differ, are no videos, or hold no frame.
    """
    shapes = f"got {tuple(video.shape)} and {tuple(reference.shape)}"
    if video.shape != reference.shape or video.dim() != 4 or video.shape[1] != 3:
        raise ValueError(f"videos must be (F, 3, H, W) of one shape; {shapes}")
    if video.numel() == 0:
        raise ValueError(f"videos must hold at least one frame and pixel; {shapes}")


def psnr_per_frame(video: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each frame: (F,) in dB, infinite for equal frames.

    Args:
        video: (F, 3, H, W) floats in [0, 1].
        reference: same shape.

    Raises:
        ValueError: shapes differ or are no videos.
    """
    check_pair(video, reference)
    # Frame by frame: a float64 copy of a whole 720p video would take gigabytes.
    pairs = zip(video, reference, strict=True)
    error = torch.stack([(a.double() - b.double()).square().mean() for a, b in pairs])
    return -10 * torch.log10(error)


def mean_psnr(values: Sequence[float]) -> float:
    """Average PSNR in dB, each at most ``PSNR_OF_EQUAL_FRAMES``; infinite only when all are."""
    if all(math.isinf(value) for value in values):
        return math.inf
    return fmean(min(value, PSNR_OF_EQUAL_FRAMES) for value in values)


def pooled_psnr(values: Sequence[float]) -> float:
    """Return the PSNR in dB of the squared error pooled over frames, from the frames' PSNR.

    Bad frames weigh more than in ``mean_psnr``; infinite only when all frames are equal.
    """
    error = fmean(0.0 if math.isinf(value) else 10 ** (-value / 10) for value in values)
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim_per_frame(video: Tensor, reference: Tensor, *, border: bool = True) -> Tensor:
    """Return the structural similarity of each frame: (F,) in [-1, 1].

    Args:
        video: (F, 3, H, W) floats in [0, 1].
        reference: same shape.
        border: count the outer 5 pixels, whose windows are filled up by reflection, as
            torchmetrics does; without them the values are those of scikit-image and of the
            original code, in small frames up to 0.001 apart.

    Raises:
        ValueError: shapes differ or are no videos.

    Source: Wang et al. 2004; torchmetrics with its defaults (Gaussian window, sigma 1.5).
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    check_pair(video, reference)
    values = []
    for a, b in zip(video.split(8), reference.split(8), strict=True):
        options = {"data_range": 1.0, "reduction": "none", "return_full_image": True}
        whole, places = ssim(a.float(), b.float(), **options)
        inner = places[..., _RADIUS:-_RADIUS, _RADIUS:-_RADIUS].mean(dim=(1, 2, 3))
        values.append(whole.reshape(-1) if border else inner)
    return torch.cat(values)


def ms_ssim_scales(height: int, width: int) -> int:
    """Return how many of MS-SSIM's five scales frames are large enough for; 0 for none."""
    # torchmetrics' limits: 176 pixels for all five scales.
    side = min(height, width)
    scales = range(len(_SCALE_WEIGHTS))
    return sum(side // max(1, 2**scale, scale**2) >= _WINDOW for scale in scales)


def ms_ssim_per_frame(video: Tensor, reference: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of each frame: (F,) in [0, 1].

    Frames under 176 pixels have fewer than the five scales (``ms_ssim_scales``); the weights of
    those left are then scaled to sum to 1, and values compare only with others of that size.

    Args:
        video: (F, 3, H, W) floats in [0, 1], at least 11 pixels on the shorter side.
        reference: same shape.

    Raises:
        ValueError: shapes differ, are no videos, or are too small for one scale.

    Source: Wang, Simoncelli and Bovik 2003; torchmetrics.
    """
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure as ms_ssim,
    )

    check_pair(video, reference)
    count = ms_ssim_scales(*video.shape[2:])
    if count == 0:
        raise ValueError(f"MS-SSIM needs frames of {_WINDOW} pixels; got {tuple(video.shape)}")
    chosen = _SCALE_WEIGHTS[:count]
    betas = tuple(weight / sum(chosen) for weight in chosen) if count < 5 else chosen
    values = [
        ms_ssim(
            a.float(), b.float(), data_range=1.0, reduction="none", betas=betas, normalize="relu"
        ).reshape(-1)
        for a, b in zip(video.split(4), reference.split(4), strict=True)
    ]
    return torch.cat(values)
