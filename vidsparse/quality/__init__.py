"""Quality against the dense video: per frame, over time, over clips, and what it means."""

from vidsparse.quality.frames import (
    PSNR_OF_EQUAL_FRAMES,
    mean_psnr,
    ms_ssim_per_frame,
    pooled_psnr,
    psnr_per_frame,
    ssim_per_frame,
)
from vidsparse.quality.intervals import Interval, bootstrap_mean, bootstrap_ratio
from vidsparse.quality.measure import Quality, compare_videos
from vidsparse.quality.perceptual import (
    NO_BACKBONE,
    Lpips,
    MetricUnavailableError,
    backbone_file,
    load_lpips,
)
from vidsparse.quality.temporal import flicker_per_step, warped_error_per_step
from vidsparse.quality.verdict import Verdict, judge

__all__ = [
    "NO_BACKBONE",
    "PSNR_OF_EQUAL_FRAMES",
    "Interval",
    "Lpips",
    "MetricUnavailableError",
    "Quality",
    "Verdict",
    "backbone_file",
    "bootstrap_mean",
    "bootstrap_ratio",
    "compare_videos",
    "flicker_per_step",
    "judge",
    "load_lpips",
    "mean_psnr",
    "ms_ssim_per_frame",
    "pooled_psnr",
    "psnr_per_frame",
    "ssim_per_frame",
    "warped_error_per_step",
]
