"""Generate held-out captions with a model and count how often the clips are what they say."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from vidsparse.models.content import ContentScore, held_out_captions, score_clip, summarise
from vidsparse.models.grammar import Caption
from vidsparse.quality import PSNR_OF_EQUAL_FRAMES, mean_psnr, psnr_per_frame

# Video tokens of a batch that keeps a GPU busy and fits in 16 GB.
_GPU_TOKENS = 150_000
# Clips that the other precision generates again: enough to see how far rounding goes.
FLOOR_CLIPS = 2


@dataclass(frozen=True)
class CheckSettings:
    """What is generated for a content check.

    Attributes:
        clips: number of captions.
        seed: decides captions and noise: clip i starts from the noise of ``seed + i``.
        height: pixels.
        width: pixels.
        num_frames: 4 k + 1.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        batch: clips generated at once; more use a GPU better.
    """

    clips: int = 64
    seed: int = 0
    height: int = 128
    width: int = 128
    num_frames: int = 33
    steps: int = 20
    guidance: float = 4.0
    batch: int = 1


def batch_for(device: torch.device, tokens: int) -> int:
    """Return how many clips of ``tokens`` video tokens to generate at once: one on a CPU."""
    return 1 if device.type == "cpu" else max(1, _GPU_TOKENS // tokens)


def check_model(
    pipe: Any,
    settings: CheckSettings,
    *,
    floor_pipe: Any = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Generate held-out captions and score them.

    Args:
        pipe: a WanPipeline of a bundled model.
        settings: which clips, and how.
        floor_pipe: the same model in another precision; it generates the first FLOOR_CLIPS clips
            again, and ``floor_psnr`` says how close they come.
        progress: called with clips done and all clips after each batch.

    Returns:
        Fractions ``shape``, ``colour``, ``direction`` in [0, 1], then ``clips``, ``seconds`` and,
        with ``floor_pipe``, ``floor_psnr`` in dB, a mean over frames, then clips.
    """
    start = time.monotonic()
    captions = held_out_captions(settings.clips, settings.seed)
    scores: list[ContentScore] = []
    kept: list[Tensor] = []
    for first in range(0, settings.clips, settings.batch):
        some = captions[first : first + settings.batch]
        clips = generate(pipe, some, first, settings)
        scores += [score_clip(c.movedim(1, -1), t) for c, t in zip(clips, some, strict=True)]
        kept += clips[: FLOOR_CLIPS - len(kept)]
        progress(len(scores), settings.clips)
    result = summarise(scores, time.monotonic() - start)
    if floor_pipe is not None:
        again = [generate(floor_pipe, [captions[i]], i, settings)[0] for i in range(len(kept))]
        result["floor_psnr"] = _mean_psnr(again, kept)
    return result


@torch.no_grad()
def generate(
    pipe: Any, captions: Sequence[Caption], first: int, settings: CheckSettings
) -> list[Tensor]:
    """Return clips (F, 3, H, W) float32 in [0, 1] on the CPU; ``first`` numbers the first one."""
    seeds = range(settings.seed + first, settings.seed + first + len(captions))
    frames = pipe(
        [str(caption) for caption in captions],
        height=settings.height,
        width=settings.width,
        num_frames=settings.num_frames,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).frames
    return list(frames.detach().float().clamp(0, 1).cpu())


def _mean_psnr(videos: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    pairs = zip(videos, references, strict=True)
    means = [mean_psnr(tuple(psnr_per_frame(a, b).tolist())) for a, b in pairs]
    return round(fmean(min(mean, PSNR_OF_EQUAL_FRAMES) for mean in means), 2)
