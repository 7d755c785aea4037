"""Generate the same clips densely and sparsely, and measure what sparsity costs and saves."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from vidsparse.clips import (
    ClipFacts,
    Clips,
    MemoryClips,
    Scene,
    SiteDensity,
    contender_key,
    frames_digest,
)
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.generate import Clip, OnStep, Sampling, sample, warm_up
from vidsparse.models.content import score_clip
from vidsparse.quality import Lpips, Quality, compare_videos, ssim_per_frame
from vidsparse.quality.measure import NOT_ASKED
from vidsparse.request import SparseRequest
from vidsparse.scores import Comparison, Record
from vidsparse.video import to_float, to_uint8

__all__ = ["Comparison", "Contender", "Progress", "Scene", "compare"]

# Keys of a preset that change no clip.
_FOR_PEOPLE = ("status", "note", "measured")


@dataclass(frozen=True)
class Progress:
    """Where a comparison stands, after each denoising step.

    Attributes:
        clip: what is being generated, for people.
        number: of this clip, from 1.
        clips: to generate in this run; finished ones of an earlier run are not among them.
        step: steps done of this clip.
        steps: of a clip.
    """

    clip: str
    number: int
    clips: int
    step: int
    steps: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Contender:
    """One way to generate.

    Attributes:
        label: how tables and pictures name it.
        pipe: the pipeline that generates.
        request: the sparse method; None generates densely.
        context: entered around each generation, such as another attention backend.
    """

    label: str
    pipe: Any
    request: SparseRequest | None = None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Judges:
    """What clips are measured by.

    Attributes:
        lpips: the metric, or the note that says why it is unavailable.
        lpips_vgg: alike.
        content: score clips against their captions (bundled model's grammar).
        device: where metrics are computed.
    """

    lpips: Lpips | str
    lpips_vgg: Lpips | str = NOT_ASKED
    content: bool = False
    device: torch.device | str = "cpu"


@dataclass
class _Run:
    """What all clips of a comparison share."""

    sampling: Sampling
    judges: Judges
    clips: Clips
    settings: Mapping[str, Any]
    on_progress: OnProgress | None
    missing: int = 0
    started: int = 0
    keys: dict[int, str] = field(default_factory=dict)
    name: str = field(default_factory=lambda: uuid4().hex)

    def key(self, contender: Contender) -> str:
        """Return a contender's name among the kept clips; presets are read once a run."""
        if id(contender) not in self.keys:
            asked = {"label": contender.label, "request": _deciding(contender.request)}
            self.keys[id(contender)] = contender_key(contender.label, {**self.settings, **asked})
        return self.keys[id(contender)]


def _deciding(request: SparseRequest | None) -> dict[str, Any] | None:
    """Return what decides a request's clips: of its preset the settings, not the file's name."""
    if request is None or request.preset is None:
        return None if request is None else asdict(request)
    settings = SparseConfig.load(request.preset).as_dict()
    kept = {key: value for key, value in settings.items() if key not in _FOR_PEOPLE}
    return {**asdict(request), "preset": kept}


def compare(
    dense: Contender,
    contenders: Sequence[Contender],
    scenes: Sequence[Scene],
    sampling: Sampling,
    judges: Judges,
    *,
    floor: Contender | None = None,
    clips: Clips | None = None,
    settings: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Run every contender on every scene, after the dense clip of the same seed.

    All methods are attached once before anything is generated, then everyone runs an untimed
    step: options that cannot work fail at once, and no clip pays for compilation. Metrics are
    taken on the 8-bit frames that are kept, so that anybody gets the same from the files.

    Args:
        dense: the reference.
        contenders: what is measured against it.
        scenes: prompts and seeds.
        sampling: options of all clips.
        judges: metrics.
        floor: another dense run, what differences mean nothing below.
        clips: where clips are kept; those it holds of an earlier run are not made again.
        settings: JSON values that decide what is generated besides the method, for ``clips``.
        on_progress: called after each step.

    Raises:
        VidsparseError: a method cannot be attached, or a clip or a metric is not finite.
    """
    everyone = [dense, *contenders, *([] if floor is None else [floor])]
    _check_methods(everyone)
    store = MemoryClips() if clips is None else clips
    run = _Run(sampling, judges, store, settings or {}, on_progress)
    missing = list(_missing(run, everyone, scenes))
    run.missing = len(missing)
    for contender in everyone:
        if any(one is contender for one, _ in missing):
            _warm_up(contender, scenes[0].prompt, sampling)
    records = [Record(one.label, run.key(one)) for one in everyone]
    for scene in scenes:
        for contender, record in zip(everyone, records, strict=True):
            record.clips.append(_clip(run, contender, scene, None if contender is dense else dense))
    return Comparison(
        scenes=tuple(scenes),
        dense=records[0],
        contenders=tuple(records[1 : 1 + len(contenders)]),
        floor=None if floor is None else records[-1],
        strangers=_strangers(run, records[0].key, scenes),
    )


def _check_methods(everyone: Sequence[Contender]) -> None:
    for contender in everyone:
        if contender.request is not None:
            contender.request.enable(contender.pipe).disable()


def _missing(
    run: _Run, everyone: Sequence[Contender], scenes: Sequence[Scene]
) -> Iterator[tuple[Contender, Scene]]:
    for scene in scenes:
        for contender in everyone:
            if run.clips.find(run.key(contender), scene) is None:
                yield contender, scene


def _warm_up(contender: Contender, prompt: str, sampling: Sampling) -> None:
    with contender.context():
        if contender.request is None:
            warm_up(contender.pipe, prompt, sampling, steps=1)
            return
        handle = contender.request.enable(contender.pipe, all_sparse=True)
        try:
            # Two steps: methods that search or gather at their first one skip from the next on.
            warm_up(contender.pipe, prompt, sampling, steps=2)
        finally:
            handle.disable()


def _clip(run: _Run, contender: Contender, scene: Scene, dense: Contender | None) -> ClipFacts:
    """Return what is known of a clip, after making it unless it is there."""
    key = run.key(contender)
    facts = run.clips.find(key, scene)
    if facts is None:
        run.started += 1
        made, facts = _generate(run, contender, scene)
        frames = to_uint8(made.video)
        facts = replace(facts, digest=frames_digest(frames), run=run.name)
    elif _lacks_quality(run, facts, scene, dense) or _lacks_content(run, facts):
        frames = run.clips.frames(key, scene)
    else:
        return facts
    facts = _judged(run, facts, frames, scene, dense)
    run.clips.keep(key, scene, frames, facts)
    return facts


def _lacks_quality(run: _Run, facts: ClipFacts, scene: Scene, dense: Contender | None) -> bool:
    """Whether a clip was not measured, or against another dense clip, or with fewer metrics."""
    if dense is None:
        return False
    quality, judges = facts.quality, run.judges
    if quality is None or facts.against != _digest_of(run, dense, scene):
        return True
    pairs = ((quality.lpips, judges.lpips), (quality.lpips_vgg, judges.lpips_vgg))
    return any(value is None and not isinstance(metric, str) for value, metric in pairs)


def _digest_of(run: _Run, contender: Contender, scene: Scene) -> str | None:
    facts = run.clips.find(run.key(contender), scene)
    return None if facts is None else facts.digest


def _lacks_content(run: _Run, facts: ClipFacts) -> bool:
    return run.judges.content and facts.content is None


def _generate(run: _Run, contender: Contender, scene: Scene) -> tuple[Clip, ClipFacts]:
    on_step = _on_step(run, f"{contender.label}, seed {scene.seed}")
    request = contender.request
    handle = None if request is None else request.enable(contender.pipe, record_sites=True)
    calls: dict[str, Any] | None = None
    sites: tuple[SiteDensity, ...] = ()
    try:
        with contender.context():
            pipe, sampling = contender.pipe, run.sampling
            clip = sample(pipe, scene.prompt, sampling, seed=scene.seed, on_step=on_step)
        if handle is not None:
            calls, sites = handle.summary().as_dict(), _sites(handle.recorder.rows)
    finally:
        if handle is not None:
            handle.disable()
    facts = ClipFacts(clip.denoise_seconds, clip.total_seconds, calls=calls, sites=sites)
    return clip, facts


def _on_step(run: _Run, clip: str) -> OnStep | None:
    if run.on_progress is None:
        return None
    tell, number, clips = run.on_progress, run.started, run.missing
    return lambda done, total: tell(Progress(clip, number, clips, done, total))


def _sites(rows: Sequence[tuple[Any, Any]]) -> tuple[SiteDensity, ...]:
    """Average the recorder's rows over branches and batch rows."""
    seen: dict[tuple[str, int, int], list[float]] = {}
    for site, density in rows:
        seen.setdefault((site.transformer, site.step, site.layer), []).append(float(density))
    return tuple(SiteDensity(*where, fmean(values)) for where, values in sorted(seen.items()))


def _judged(
    run: _Run, facts: ClipFacts, frames: np.ndarray, scene: Scene, dense: Contender | None
) -> ClipFacts:
    """Measure what a clip lacks."""
    judges, quality, content, against = run.judges, facts.quality, facts.content, facts.against
    if dense is not None and _lacks_quality(run, facts, scene, dense):
        truth = run.clips.frames(run.key(dense), scene)
        pair = [to_float(one).to(judges.device) for one in (frames, truth)]
        quality = compare_videos(pair[0], pair[1], lpips=judges.lpips, lpips_vgg=judges.lpips_vgg)
        _check_finite(quality, scene)
        against = _digest_of(run, dense, scene)
    if _lacks_content(run, facts):
        content = asdict(score_clip(frames.astype(np.float32) / 255, scene.prompt))
    return replace(facts, quality=quality, content=content, against=against)


def _check_finite(quality: Quality, scene: Scene) -> None:
    """Refuse metrics that are no numbers; equal frames have an infinite PSNR."""
    for name, value in quality.means().items():
        known = value is None or math.isfinite(value) or (quality.identical and "psnr" in name)
        if not known:
            raise UsageError(
                f"{name} of the clip of seed {scene.seed} against dense is {value}; its metric is "
                "broken on this device, try --device cpu"
            )


def _strangers(run: _Run, dense: str, scenes: Sequence[Scene]) -> tuple[float, ...] | None:
    """Return each dense clip's SSIM to another one, of the same prompt where there is one."""
    if len(scenes) < 2:
        return None
    return tuple(_stranger(run, dense, scenes, index) for index in range(len(scenes)))


def _stranger(run: _Run, dense: str, scenes: Sequence[Scene], index: int) -> float:
    following = [*scenes[index + 1 :], *scenes[:index]]
    same = [scene for scene in following if scene.prompt == scenes[index].prompt]
    pair = [run.clips.frames(dense, one) for one in (scenes[index], (same or following)[0])]
    return float(ssim_per_frame(to_float(pair[0]), to_float(pair[1])).mean())
