"""Compare how a video and its reference move: flicker and flow-warped error.

Per-frame metrics miss flicker, the typical fault of sparse attention: each frame may look right
while the sequence shimmers.
"""

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from vidsparse.quality.frames import check_pair

# Below this, OpenCV's DIS flow has no pyramid to work on.
_LEAST_SIDE = 16
# Forward and backward flow must cancel within this share of their squared length, plus half a
# squared pixel: Sundaram, Brox and Keutzer 2010.
_CONSISTENCY = 0.01
_SLACK = 0.5


def flicker_per_step(video: Tensor, reference: Tensor) -> Tensor:
    """Return the frame-difference error of each pair of neighbouring frames.

    It is the mean over pixels of ``|(v[t+1] - v[t]) - (r[t+1] - r[t])|``: 0 when both change
    alike, even where they differ.

    Args:
        video: (F, 3, H, W) floats in [0, 1].
        reference: same shape.

    Returns:
        (F - 1,) float32 in [0, 2].

    Raises:
        ValueError: shapes differ or are no videos.
    """
    check_pair(video, reference)
    steps = zip(video[:-1], video[1:], reference[:-1], reference[1:], strict=True)
    values = [((b - a) - (d - c)).float().abs().mean() for a, b, c, d in steps]
    return torch.stack(values).cpu() if values else torch.empty(0)


def warped_error_per_step(video: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return the flow-warped error of the video and of the reference.

    The reference's optical flow says where each pixel goes. The next frame is brought back along
    it; what then differs is change that no motion explains. Pixels that get covered, or whose
    flow is unsure (forward and backward flow do not cancel), are left out. The reference's own
    error is what its flow leaves unexplained: the video's excess over it is flicker.

    Args:
        video: (F, 3, H, W) floats in [0, 1], at least 16 pixels on the shorter side.
        reference: same shape.

    Returns:
        Two (F - 1,) float32, mean squared difference in [0, 1] over the pixels kept; NaN for a
        step that keeps none, as in a cut.

    Raises:
        ValueError: shapes differ, are no videos, or are too small.

    Source: the warping error of Lai et al. 2018, arXiv:1808.00449, with the reference's flow for
    both; OpenCV's DIS flow (Kroeger et al. 2016).
    """
    check_pair(video, reference)
    if min(video.shape[2:]) < _LEAST_SIDE:
        raise ValueError(f"flow needs frames of {_LEAST_SIDE} pixels; got {tuple(video.shape)}")
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    mine, own = [], []
    for t in range(len(video) - 1):
        here, there, valid = _flow_map(estimator, _gray(reference[t]), _gray(reference[t + 1]))
        mine.append(_error(video[t], video[t + 1], here, there, valid))
        own.append(_error(reference[t], reference[t + 1], here, there, valid))
    return torch.tensor(mine), torch.tensor(own)


def _gray(frame: Tensor) -> np.ndarray:
    pixels = (frame.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.asarray(cv2.cvtColor(_channels_last(pixels), cv2.COLOR_RGB2GRAY))


def _channels_last(frame: Tensor) -> np.ndarray:
    return np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy())


def _flow_map(
    estimator: Any, frame: np.ndarray, following: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each pixel goes, as x and y maps, and (H, W) bool where that is sure."""
    forward = estimator.calc(frame, following, None)
    backward = estimator.calc(following, frame, None)
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    x, y = columns + forward[..., 0], rows + forward[..., 1]
    back = cv2.remap(backward, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    gap = np.square(forward + back).sum(-1)
    length = np.square(forward).sum(-1) + np.square(back).sum(-1)
    inside = (x >= 0) & (x <= frame.shape[1] - 1) & (y >= 0) & (y <= frame.shape[0] - 1)
    return x, y, inside & (gap < _CONSISTENCY * length + _SLACK)


def _error(
    frame: Tensor, following: Tensor, x: np.ndarray, y: np.ndarray, valid: np.ndarray
) -> float:
    warped = cv2.remap(_channels_last(following.float()), x, y, cv2.INTER_LINEAR)
    error = np.square(_channels_last(frame.float()) - warped).mean(-1)
    return float(error[valid].mean()) if valid.any() else float("nan")
