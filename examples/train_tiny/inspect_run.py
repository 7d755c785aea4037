"""Pictures and scores of a run: VAE reconstructions, sampled videos, the content check."""

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from parts import decode_clip, encode_moments
from scenes import render, sample_scenes
from settings import Grid, Settings
from torch import Tensor

from vidsparse.models.content import (
    ContentScore,
    held_out_captions,
    score_clip,
    summarise,
)

COLUMNS = 6


def _row(video: Tensor, side: int) -> np.ndarray[Any, Any]:
    """Lay COLUMNS frames of (F, H, W, 3) in [0, 1] side by side."""
    picks = np.linspace(0, video.shape[0] - 1, COLUMNS).round().astype(int)
    frames = [(video[i].clamp(0, 1) * 255).byte().cpu().numpy() for i in picks]
    scale = side / frames[0].shape[0]
    size = (round(frames[0].shape[1] * scale), side)
    return np.concatenate([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames], 1)


def contact_sheet(videos: list[Tensor], titles: list[str], path: Path, side: int = 96) -> None:
    """Write rows of frames, each under its title."""
    rows = []
    for video, title in zip(videos, titles, strict=True):
        strip = _row(video, side)
        bar = np.full((16, strip.shape[1], 3), 255, np.uint8)
        cv2.putText(bar, title, (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
        rows += [bar, strip]
    cv2.imwrite(str(path), np.concatenate(rows, 0)[..., ::-1])


@torch.no_grad()
def vae_sheet(
    vae: AutoencoderKLWan, settings: Settings, grid: Grid, count: int, device: str, path: Path
) -> float:
    """Draw truth and reconstruction of fresh clips; returns the PSNR in dB."""
    scenes, captions = sample_scenes(count, torch.Generator().manual_seed(settings.seed + 77))
    video = render(
        scenes.to(torch.device(device)), frames=grid.frames, height=grid.height, width=grid.width
    )
    with torch.autocast(device, torch.bfloat16):
        out = decode_clip(vae, encode_moments(vae, video)[0]).float().clamp(-1, 1)
    psnr = float(-10 * torch.log10((out - video).pow(2).mean() / 4))
    clips, titles = [], []
    for i, caption in enumerate(captions):
        clips += [(c[i].permute(1, 2, 3, 0) + 1) / 2 for c in (video, out)]
        titles += [f"truth: {caption}", f"reconstruction ({psnr:.1f} dB over all)"]
    contact_sheet(clips, titles, path)
    return psnr


@torch.no_grad()
def sample(
    pipe: WanPipeline, prompts: list[str], grid: Grid, settings: Settings, batch: int
) -> list[Tensor]:
    """Generate clips (F, H, W, 3) in [0, 1] with the pipeline itself."""
    clips: list[Tensor] = []
    device = pipe.transformer.device.type
    for first in range(0, len(prompts), batch):
        some = prompts[first : first + batch]
        generators = [
            torch.Generator().manual_seed(settings.seed + first + i) for i in range(len(some))
        ]
        with torch.autocast(device, torch.bfloat16):
            frames = pipe(
                some,
                height=grid.height,
                width=grid.width,
                num_frames=grid.frames,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=generators,
                output_type="pt",
            ).frames
        clips += [clip.permute(0, 2, 3, 1).float().cpu() for clip in frames]
    return clips


def check(
    pipe: WanPipeline, settings: Settings, grid: Grid, count: int, path: Path, batch: int = 32
) -> dict[str, Any]:
    """Score held-out captions on a grid and draw the first twenty with their verdicts."""
    start = time.monotonic()
    captions = held_out_captions(count, settings.seed)
    clips = sample(pipe, [str(c) for c in captions], grid, settings, batch)
    scores: list[ContentScore] = []
    titles = []
    for clip, caption in zip(clips, captions, strict=True):
        score = score_clip(clip, caption)
        scores.append(score)
        right = [name for name in ("shape", "colour", "direction") if getattr(score, name)]
        titles.append(f"{caption} | right: {', '.join(right) or 'nothing'}")
    contact_sheet(clips[:20], titles[:20], path)
    return summarise(scores, time.monotonic() - start)


def ready(pipe: WanPipeline) -> WanPipeline:
    """Quieten the pipeline."""
    pipe.set_progress_bar_config(disable=True)
    return pipe
