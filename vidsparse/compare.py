"""Generate the same clips densely and sparsely, and measure what sparsity costs and saves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor

from vidsparse.generate import Clip, OnStep, Sampling, sample, warm_up
from vidsparse.models.content import ContentScore, score_clip
from vidsparse.quality import Lpips, Quality, compare_videos, mean_psnr
from vidsparse.request import SparseRequest

# Called after each step with what is generated, the number of steps done and of all steps.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scene:
    """A clip to generate: the prompt and the seed of its noise."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Contender:
    """One way to generate.

    Attributes:
        label: how tables and pictures name it.
        pipe: the pipeline that generates.
        request: the sparse method; None generates densely.
    """

    label: str
    pipe: Any
    request: SparseRequest | None = None


@dataclass
class Record:
    """What one contender made of all scenes.

    Attributes:
        label: the contender's.
        first: (F, 3, H, W) video of the first scene, for pictures.
        denoise_seconds: per scene.
        quality: per scene, against the dense clip.
        content: per scene; empty when the captions cannot be judged.
        calls: per scene, the attached method's summary; empty for dense contenders.
    """

    label: str
    first: Tensor | None = None
    denoise_seconds: list[float] = field(default_factory=list)
    quality: list[Quality] = field(default_factory=list)
    content: list[ContentScore] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """The dense reference and the contenders, over all scenes."""

    scenes: tuple[Scene, ...]
    dense: Record
    contenders: tuple[Record, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON-ready row per contender, in the order given."""
        return [_row(record, self.dense) for record in self.contenders]

    def dense_row(self) -> dict[str, Any]:
        """Return what is known of the dense clips: time and content."""
        return {"method": "dense", **_time(self.dense), "content": _content(self.dense)}

    def clips(self) -> list[tuple[str, Tensor]]:
        """Return label and video of the first scene, dense first."""
        records = (self.dense, *self.contenders)
        return [(record.label, record.first) for record in records if record.first is not None]


def compare(
    dense: Contender,
    contenders: Sequence[Contender],
    scenes: Sequence[Scene],
    sampling: Sampling,
    *,
    lpips: Lpips | str,
    judge_content: bool = False,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Run every contender on every scene, after the dense clip of the same seed.

    All methods are attached once before anything is generated, then everyone runs an untimed
    step: options that cannot work fail at once, and no clip pays for compilation.

    Args:
        dense: the reference.
        contenders: what is measured against it.
        scenes: prompts and seeds.
        sampling: options of all clips.
        lpips: the metric, or the note that says why it is unavailable.
        judge_content: score clips against their captions (bundled model's grammar).
        on_progress: called after each step.

    Raises:
        VidsparseError: a method cannot be attached.
    """
    for contender in contenders:
        if contender.request is not None:
            contender.request.enable(contender.pipe).disable()
    reference, records = Record(dense.label), [Record(one.label) for one in contenders]
    for contender in (dense, *contenders):
        _warm_up(contender, scenes[0].prompt, sampling)
    for scene in scenes:
        truth = _generate(dense, scene, sampling, reference, on_progress)
        _judge(truth, scene, reference, judge_content)
        for contender, record in zip(contenders, records, strict=True):
            clip = _generate(contender, scene, sampling, record, on_progress)
            record.quality.append(compare_videos(clip.video, truth.video, lpips=lpips))
            _judge(clip, scene, record, judge_content)
    return Comparison(tuple(scenes), reference, tuple(records))


def _warm_up(contender: Contender, prompt: str, sampling: Sampling) -> None:
    if contender.request is None:
        warm_up(contender.pipe, prompt, sampling, steps=1)
        return
    handle = contender.request.enable(contender.pipe)
    try:
        steps = contender.request.steps_to_reach_sparse()
        warm_up(contender.pipe, prompt, sampling, steps=steps)
    finally:
        handle.disable()


def _generate(
    contender: Contender,
    scene: Scene,
    sampling: Sampling,
    record: Record,
    on_progress: OnProgress | None,
) -> Clip:
    on_step = None if on_progress is None else _named(on_progress, contender, scene)
    handle = None if contender.request is None else contender.request.enable(contender.pipe)
    try:
        clip = sample(contender.pipe, scene.prompt, sampling, seed=scene.seed, on_step=on_step)
        if handle is not None:
            record.calls.append(handle.summary().as_dict())
    finally:
        if handle is not None:
            handle.disable()
    record.denoise_seconds.append(clip.denoise_seconds)
    if record.first is None:
        record.first = clip.video
    return clip


def _named(on_progress: OnProgress, contender: Contender, scene: Scene) -> OnStep:
    name = f"{contender.label}, seed {scene.seed}"

    def on_step(done: int, total: int) -> None:
        on_progress(name, done, total)

    return on_step


def _judge(clip: Clip, scene: Scene, record: Record, judge_content: bool) -> None:
    if judge_content:
        record.content.append(score_clip(clip.video.permute(0, 2, 3, 1), scene.prompt))


def _row(record: Record, dense: Record) -> dict[str, Any]:
    psnr = mean_psnr(tuple(quality.mean_psnr for quality in record.quality))
    return {
        "method": record.label,
        "speedup": sum(dense.denoise_seconds) / sum(record.denoise_seconds),
        **_density(record),
        # JSON knows no infinity: null with identical true.
        "psnr": None if math.isinf(psnr) else psnr,
        "identical": math.isinf(psnr),
        "ssim": fmean(quality.mean_ssim for quality in record.quality),
        "lpips": _lpips(record.quality),
        **_time(record),
        "content": _content(record),
        "calls": record.calls,
    }


def _time(record: Record) -> dict[str, Any]:
    return {
        "clips": len(record.denoise_seconds),
        "denoise_seconds": fmean(record.denoise_seconds),
    }


def _density(record: Record) -> dict[str, float | None]:
    """Average over scenes; a contender without sparse calls has density 1."""
    sparse = [calls["density"] for calls in record.calls if calls["density"] is not None]
    overall = [calls["overall_density"] for calls in record.calls]
    return {
        "density": fmean(sparse) if sparse else 1.0,
        "overall_density": fmean(overall) if overall else 1.0,
    }


def _lpips(qualities: Sequence[Quality]) -> float | str | None:
    """Return the mean over clips, or the note that says why there is none."""
    values = [quality.mean_lpips for quality in qualities]
    known = [value for value in values if value is not None]
    return fmean(known) if known else qualities[0].lpips_note


def _content(record: Record) -> dict[str, float] | None:
    if not record.content:
        return None
    return {
        name: fmean(float(getattr(score, name)) for score in record.content)
        for name in ("shape", "colour", "direction")
    }
