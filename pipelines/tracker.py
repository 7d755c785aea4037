"""Follow generations, steps and branches from what the transformers are called with."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidsparse.pipelines.memo import version_of


@dataclass(frozen=True)
class Clock:
    """What the pipeline around a transformer knows when a forward begins.

    Attributes:
        timesteps: ``scheduler.timesteps``; every ``set_timesteps`` makes a new object.
        step_index: ``scheduler.step_index``, where the scheduler has one.
        num_steps: steps of the generation, as the pipeline told when it last ran.
        scheduled_steps: the same as the scheduler tells, right for whoever set its timesteps.
        current: the timestep object the pipeline is at; None where it is not running.
        time_rises: the model is told 1000 - t, so that time grows while noise falls.
        time_scale: time of pure noise; infinite where the model is told ln(sigma) / 4 (EDM).
    """

    timesteps: object | None = None
    step_index: int | None = None
    num_steps: int | None = None
    scheduled_steps: int | None = None
    current: object | None = None
    time_rises: bool = False
    time_scale: float = 1000.0


@dataclass
class StepTracker:
    """Steps of one pipeline or bare transformer; reads nothing but its arguments.

    A new ``scheduler.timesteps`` object, a time that runs backwards or an aborted forward begins a
    generation; a new time begins a step; forwards at the same time are branches. No call is
    counted, so that step caches may skip any of them.

    Attributes:
        generation: counts from 0; -1 before the first forward.
        step: from 0 in each generation.
        branch: from 0 in each step.
        num_steps: steps of this generation, None when nobody told.
        sigma: noise level in [0, 1], None when the forward had no time.
    """

    generation: int = -1
    step: int = -1
    branch: int = -1
    num_steps: int | None = None
    sigma: float | None = None
    _told_steps: int | None = None
    _told: bool = False
    _restart: bool = True
    _inside: bool = False
    _clock: Clock = field(default_factory=Clock)
    _time: Tensor | float | None = None
    _version: int | None = None
    _elapsed: float | None = None

    def begin_forward(self, time: Tensor | float | None, clock: Clock) -> None:
        """Note that a transformer is about to run.

        Args:
            time: the forward's ``timestep``, any shape with the batch first; waits for its device
                once per tensor object, for an inference tensor at each forward.
            clock: the pipeline's; an empty one for a bare transformer.
        """
        version = version_of(time)
        known = version is not None and time is self._time and version == self._version
        elapsed = self._elapsed if known else self._read(time, clock)
        if self._begins_generation(elapsed, clock):
            self._begin_generation(clock)
        # Low-precision times of two steps may round to one value: the scheduler tells them apart.
        same_step = elapsed == self._elapsed and clock.step_index == self._clock.step_index
        if self.step >= 0 and same_step:
            self.branch += 1
        else:
            self.step, self.branch = self.step + 1, 0
        self._time, self._version, self._elapsed = time, version, elapsed
        self._clock, self._inside = clock, True

    def end_forward(self) -> None:
        """Note that the forward returned; one that raised never gets here."""
        self._inside = False

    def restart(self, *, told: bool = False, num_steps: int | None = None) -> None:
        """Let the next forward begin a generation.

        Args:
            told: the caller marks the end too, by another ``restart``: until then neither time
                nor scheduler begin a generation.
            num_steps: steps of the coming generation.
        """
        self._restart, self._told, self._told_steps = True, told, num_steps

    def _read(self, time: Tensor | float | None, clock: Clock) -> float | None:
        if time is None:
            self.sigma = None
            return None
        # One row, on the CPU: times per token or per frame differ inside a row, not between rows.
        row = torch.as_tensor(time).detach()
        row = (row[-1] if row.dim() else row).to("cpu", torch.float64)
        level = _noise_level(float(row.max()), clock.time_scale)
        self.sigma = min(max(1 - level if clock.time_rises else level, 0.0), 1.0)
        return float(row.sum()) * (1 if clock.time_rises else -1)

    def _begins_generation(self, elapsed: float | None, clock: Clock) -> bool:
        if self._restart or self._inside:
            return True
        if self._told:
            return False
        if clock.timesteps is not self._clock.timesteps:
            return True
        return elapsed is not None and self._elapsed is not None and elapsed < self._elapsed - 1e-6

    def _begin_generation(self, clock: Clock) -> None:
        self.generation += 1
        self.step = self.branch = -1
        self.num_steps = self._told_steps if self._told_steps is not None else self._steps(clock)
        self._restart = False

    def _steps(self, clock: Clock) -> int | None:
        """Believe the pipeline only while it runs: others may share its transformers."""
        # An aborted run leaves its timestep behind, where it still stands a generation later.
        runs = clock.current is not None and clock.current is not self._clock.current
        if runs and clock.num_steps is not None:
            return clock.num_steps
        return clock.num_steps if clock.scheduled_steps is None else clock.scheduled_steps


def _noise_level(time: float, scale: float) -> float:
    """Return the share of noise in [0, 1]: sigma over signal and sigma, where it is known so."""
    return 1 / (1 + math.exp(-4 * time)) if math.isinf(scale) else time / scale


def clock_of(pipeline: Any, *, time_rises: bool = False, time_scale: float = 1000.0) -> Clock:
    """Read the clock of a diffusers pipeline.

    Args:
        pipeline: a pipeline, or None for a bare transformer.
        time_rises: what holds where the scheduler does not say.
        time_scale: time of pure noise, unless the scheduler is one of EDM's.
    """
    scheduler = getattr(pipeline, "scheduler", None)
    timesteps = getattr(scheduler, "timesteps", None)
    config = getattr(scheduler, "config", {})
    return Clock(
        timesteps=timesteps,
        step_index=getattr(scheduler, "step_index", None),
        num_steps=getattr(pipeline, "_num_timesteps", None),
        scheduled_steps=_scheduled_steps(scheduler),
        current=getattr(pipeline, "_current_timestep", None),
        time_rises=config.get("invert_sigmas", time_rises),
        time_scale=math.inf if type(scheduler).__name__.startswith("EDM") else time_scale,
    )


def _scheduled_steps(scheduler: Any) -> int | None:
    # Before set_timesteps these are the steps of training.
    if getattr(scheduler, "num_inference_steps", None) is None:
        return None
    return len(scheduler.timesteps) - (getattr(scheduler, "begin_index", None) or 0)
