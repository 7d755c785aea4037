"""Where candidates are generated and measured."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import vidsparse
from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.generate import (
    Clip,
    Sampling,
    has_step_callback,
    sample,
    transformers_of,
    warm_up,
)
from vidsparse.profiling.dense_run import ObservedAttention, Stopwatch, observe, span_seconds
from vidsparse.quality import Lpips
from vidsparse.tuning.references import Reference, References
from vidsparse.tuning.speed import variant_key
from vidsparse.tuning.target import Scores
from vidsparse.video import to_float, to_uint8

# Where latents are compared with the dense ones, as shares of the steps.
CHECKS = (0.5, 0.75)


@dataclass(frozen=True)
class Trial:
    """What one clip of a candidate gave.

    Attributes:
        scores: against the dense clip; None when stopped.
        seconds: of denoising; None when stopped.
        density: mean of the sparse calls; None without any.
        overall_density: of all calls, dense ones counting 1.
        checks: (step, squared latent error over squared norm) at the checks.
        stopped: step after which it was given up; None otherwise.
        refused: why the settings cannot run here; None otherwise.
    """

    scores: Scores | None
    seconds: float | None
    density: float | None = None
    overall_density: float | None = None
    checks: tuple[tuple[int, float], ...] = ()
    stopped: int | None = None
    refused: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Trial":
        """Read what ``as_dict`` returned."""
        scores = None if values["scores"] is None else Scores(**values["scores"])
        checks = tuple((int(step), float(error)) for step, error in values["checks"])
        return cls(**{**values, "scores": scores, "checks": checks})


# Takes the steps done and the latent error; true gives the clip up.
Doomed = Callable[[int, float], bool]


def never(step: int, error: float) -> bool:
    """Let every clip finish."""
    return False


class LabClock(Protocol):
    """Turns what was generated into seconds; tests put their own in."""

    def clip(self, clip: Clip, config: SparseConfig | None) -> float:
        """Return the denoising seconds of a clip; None as config is dense generation."""

    def steps(self, marks: Sequence[Any], config: SparseConfig | None) -> list[float]:
        """Return the seconds between marks on the device's timeline."""


class DeviceClock:
    """Measured time."""

    def clip(self, clip: Clip, config: SparseConfig | None) -> float:
        """Return the denoising seconds of a clip."""
        return clip.denoise_seconds

    def steps(self, marks: Sequence[Any], config: SparseConfig | None) -> list[float]:
        """Return the seconds between marks."""
        return [span_seconds(a, b) for a, b in pairwise(marks)]


class _StoppedError(Exception):
    """Ends a generation that cannot reach the target any more."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass
class PipelineLab:
    """Generates with a diffusers pipeline.

    Attributes:
        pipe: a text-to-video pipeline with nothing attached.
        sampling: options of all clips; steps must be given.
        lpips: the metric, or why there is none.
        folder: where dense clips are kept for a resumed search; None keeps them in memory.
        clock: takes times.
        floor_pipe: generates the dense clips of the floor; None for no floor.
        floor_context: entered around them.
        floor_name: names what makes them differ.
        on_clip: told what is generated.
    """

    pipe: Any
    sampling: Sampling
    lpips: Lpips | str
    folder: Path | None = None
    clock: LabClock = field(default_factory=DeviceClock)
    floor_pipe: Any = None
    floor_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    floor_name: str = "none"
    on_clip: Callable[[str], None] = lambda text: None
    generations: int = 0
    _references: References = field(init=False)
    _warm: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._references = References(self.folder)

    def dense(self, scene: Scene) -> float:
        """Generate a dense clip and keep it as the reference; returns its denoising seconds."""
        self._warm_up(None, scene)
        self.on_clip("dense")
        latents: dict[int, Tensor] = {}
        wanted = self._check_steps()

        def keep(step: int, total: int, now: Tensor) -> None:
            if step in wanted:
                latents[step] = now.detach().float().cpu()

        clip = self._sample(self.pipe, scene, on_latents=keep)
        self._references.keep(scene, Reference(to_uint8(clip.video), latents))
        return self.clock.clip(clip, None)

    def observe(self, attention: ObservedAttention, scene: Scene) -> None:
        """Generate a dense clip under observation."""
        self._warm_up(None, scene)
        self.on_clip("dense, observed")
        self.generations += 1
        observe(self.pipe, attention, scene.prompt, self.sampling, seed=scene.seed)

    def floor(self, scene: Scene) -> Scores | None:
        """Compare the dense clip with one that differs in rounding only; None without a floor."""
        if self.floor_pipe is None:
            return None
        self.on_clip("dense, floor")
        with self.floor_context():
            clip = self._sample(self.floor_pipe, scene)
        return self._scores(clip.video, scene)

    def trial(self, config: SparseConfig, scene: Scene, doomed: Doomed = never) -> Trial:
        """Generate one clip with settings, and measure it against the dense one.

        Args:
            config: the settings.
            scene: prompt and seed.
            doomed: asked at the checks whether to give up.
        """
        self._warm_up(config, scene)
        # Made now if it is missing: a pipeline cannot generate inside its own step callback.
        reference = self._reference(scene)
        checks: list[tuple[int, float]] = []

        def check(step: int, total: int, latents: Tensor) -> None:
            if step in reference.latents:
                truth = reference.latents[step]
                error = (latents.detach().float().cpu() - truth).square().sum()
                checks.append((step, float(error / truth.square().sum())))
                if doomed(*checks[-1]):
                    raise _StoppedError(step)

        try:
            with vidsparse.enabled(self.pipe, config=config) as handle:
                clip = self._sample(self.pipe, scene, on_latents=check)
                calls = handle.summary()
        except _StoppedError as stop:
            return Trial(None, None, checks=tuple(checks), stopped=stop.step)
        return Trial(
            self._scores(clip.video, scene),
            self.clock.clip(clip, config),
            calls.density,
            calls.overall_density,
            tuple(checks),
        )

    def short(self, config: SparseConfig | None, steps: int, scene: Scene) -> list[float]:
        """Time a few steps: the seconds of each, without text encoding and decoding.

        Args:
            config: settings; None for dense.
            steps: how many.
            scene: prompt and seed.
        """
        self._warm_up(config, scene)
        marks: list[Any] = []
        device = self.pipe.device

        def begin(module: torch.nn.Module, args: Any) -> None:
            if not marks:
                marks.append(Stopwatch.now(device))

        hooks = [m.register_forward_pre_hook(begin) for m in transformers_of(self.pipe)]
        try:
            with self._enabled(config):
                self._run_steps(steps, scene, lambda: marks.append(Stopwatch.now(device)))
        finally:
            for hook in hooks:
                hook.remove()
        if not has_step_callback(self.pipe):
            seconds = self.clock.steps([marks[0], Stopwatch.now(device)], config)[0] / steps
            return [seconds] * steps
        return self.clock.steps(marks, config)

    def _run_steps(self, steps: int, scene: Scene, mark: Callable[[], None]) -> None:
        def step_end(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            mark()
            return tensors

        options = {**self.sampling.arguments(), "num_inference_steps": steps}
        if has_step_callback(self.pipe):
            options["callback_on_step_end"] = step_end
        generator = torch.Generator("cpu").manual_seed(scene.seed)
        with torch.no_grad():
            self.pipe(prompt=scene.prompt, generator=generator, output_type="latent", **options)

    def _enabled(self, config: SparseConfig | None) -> AbstractContextManager[Any]:
        return nullcontext() if config is None else vidsparse.enabled(self.pipe, config=config)

    def _warm_up(self, config: SparseConfig | None, scene: Scene) -> None:
        """Run untimed steps once per process and variant, all of them sparse."""
        key = "dense" if config is None else variant_key(config)
        if key in self._warm:
            return
        self._warm.add(key)
        self.on_clip(f"warm-up, {key.split(' ')[0]}")
        bare = None
        if config is not None:
            sparse = {"dense_steps": 0, "dense_layers": 0, "dense_above_sigma": None}
            bare = config.model_copy(update={**sparse, "cache": None})
        with self._enabled(bare):
            warm_up(self.pipe, scene.prompt, self.sampling, steps=2)

    def _sample(self, pipe: Any, scene: Scene, on_latents: Any = None) -> Clip:
        self.generations += 1
        return sample(pipe, scene.prompt, self.sampling, seed=scene.seed, on_latents=on_latents)

    def _scores(self, video: Tensor, scene: Scene) -> Scores:
        pair = (to_uint8(video), self._reference(scene).frames)
        made, truth = (to_float(frames).to(self.pipe.device) for frames in pair)
        return Scores.of(made, truth, self.lpips)

    def _check_steps(self) -> set[int]:
        steps = self.sampling.steps or 0
        return {int(share * steps) for share in CHECKS} - {0, steps}

    def _reference(self, scene: Scene) -> Reference:
        found = self._references.find(scene)
        if found is None:
            self.dense(scene)
            found = self._references.find(scene)
        if found is None:
            raise ValueError(f"no dense clip was kept for {scene}")
        return found
