"""Measure settings on prompts the search has not seen, and write the preset."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.preset_parts import Measured, ModelId
from vidsparse.quality import Interval, bootstrap_mean
from vidsparse.tuning.candidates import Candidate, Variant
from vidsparse.tuning.journal import Journal
from vidsparse.tuning.lab import Trial
from vidsparse.tuning.speed import SpeedModel
from vidsparse.tuning.target import Scores, Target
from vidsparse.tuning.tune import Lab, Search


@dataclass(frozen=True)
class Validation:
    """Settings on held-out scenes.

    Attributes:
        candidate: the settings.
        scores: means over the clips.
        psnr: mean with its interval.
        per_clip: scores of each clip.
        speedup: dense over sparse denoising time, summed over the clips.
        predicted_speedup: what the short runs predicted; None where they cannot.
        density: mean of the sparse calls.
        overall_density: of all calls.
        meets: whether the means meet the target, in less time than dense generation.
        dense_seconds: of a dense clip.
    """

    candidate: Candidate
    scores: Scores
    psnr: Interval
    per_clip: tuple[Scores, ...]
    speedup: float
    predicted_speedup: float | None
    density: float | None
    overall_density: float | None
    meets: bool
    dense_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "label": self.candidate.label,
            "config": self.candidate.config.as_dict(),
            **self.scores.as_dict(),
            "psnr_interval": self.psnr.as_dict(),
            "psnr_per_clip": [score.psnr for score in self.per_clip],
            "speedup": self.speedup,
            "predicted_speedup": self.predicted_speedup,
            "density": self.density,
            "overall_density": self.overall_density,
            "meets": self.meets,
            "dense_seconds": self.dense_seconds,
        }


@dataclass
class Validator:
    """Runs settings on held-out scenes; dense clips are made once.

    Attributes:
        lab: generates.
        journal: keeps results.
        scenes: prompts the search has not seen.
        target: what must be met.
        speed: predicts.
    """

    lab: Lab
    journal: Journal
    scenes: tuple[Scene, ...]
    target: Target
    speed: SpeedModel

    def of(self, candidate: Candidate) -> Validation:
        """Generate all held-out scenes with settings, each after its dense clip."""
        dense, trials = [], []
        for index, scene in enumerate(self.scenes):
            dense.append(
                self.journal.once(f"held-out dense {index}", partial(self.lab.dense, scene))
            )
            trials.append(self._trial(candidate, index, scene))
        return self._summary(candidate, dense, trials)

    def floor(self) -> float | None:
        """Return the mean PSNR between dense clips that differ in rounding only, in dB."""
        found = [
            self.journal.once(f"floor {index}", partial(self._floor_of, scene))
            for index, scene in enumerate(self.scenes)
        ]
        known = [value for value in found if value is not None]
        return fmean(known) if known else None

    def _floor_of(self, scene: Scene) -> float | None:
        scores = self.lab.floor(scene)
        return None if scores is None else scores.psnr

    def _trial(self, candidate: Candidate, index: int, scene: Scene) -> Trial:
        make = lambda: self.lab.trial(candidate.config, scene).as_dict()  # noqa: E731
        return Trial.from_dict(self.journal.once(f"held-out {candidate.key} {index}", make))

    def _summary(
        self, candidate: Candidate, dense: Sequence[float], trials: Sequence[Trial]
    ) -> Validation:
        scores = [trial.scores for trial in trials if trial.scores is not None]
        seconds = [trial.seconds for trial in trials if trial.seconds is not None]
        predicted = self.speed.predict_raw(candidate)
        mean = Scores.mean(scores)
        return Validation(
            candidate,
            mean,
            bootstrap_mean([s.psnr for s in scores], [scene.prompt for scene in self.scenes]),
            tuple(scores),
            sum(dense) / sum(seconds),
            None if predicted is None else self.speed.dense_seconds / predicted,
            _mean([trial.density for trial in trials]),
            _mean([trial.overall_density for trial in trials]),
            self.target.met_by(mean) and sum(seconds) < sum(dense),
            fmean(dense),
        )


def choose(search: Search, validator: Validator, *, most: int = 3) -> list[Validation]:
    """Validate the fastest outcome; where it misses on held-out scenes, the next safer one.

    Args:
        search: finished.
        validator: has the held-out scenes.
        most: candidates validated.

    Returns:
        Every validation, in order; the last one is the choice, if it meets the target.
    """
    dense = validator.speed.dense_seconds
    faster = [o for o in search.outcomes if o.reaches and (o.seconds or math.inf) < dense]
    reached = sorted(faster, key=lambda outcome: outcome.seconds or 0.0)
    done: list[Validation] = []
    needed = 0.0
    for outcome in reached:
        slack = 0.0 if outcome.scores is None else validator.target.slack(outcome.scores)
        if slack < needed:
            continue
        done.append(validator.of(outcome.candidate))
        search.say(_line(done[-1]))
        if done[-1].meets or len(done) == most:
            break
        # It must have as much more room as the last one turned out to lack.
        needed = slack - validator.target.slack(done[-1].scores)
    return done


def equal_time_defaults(
    names: Sequence[str], speed: SpeedModel, seconds: float, dense_above_sigma: float | None
) -> list[Candidate]:
    """Return each method's defaults at the density whose predicted time is as given.

    Args:
        names: methods, each timed by the model with its defaults.
        speed: predicts.
        seconds: of a clip.
        dense_above_sigma: the default warm-up as a noise level.
    """
    return [
        Candidate(f"{name} defaults", Variant(name, {}, ()).config(density, dense_above_sigma))
        for name in names
        for density in (_density_for(name, speed, seconds, dense_above_sigma),)
    ]


def _density_for(
    name: str, speed: SpeedModel, seconds: float, dense_above_sigma: float | None
) -> float:
    """Bisect the density; predictions rise with it."""
    low, high = 0.05, 0.95
    for _ in range(20):
        middle = (low + high) / 2
        config = Variant(name, {}, ()).config(middle, dense_above_sigma)
        predicted = speed.predict_raw(Candidate("", config))
        low, high = (middle, high) if (predicted or 0.0) < seconds else (low, middle)
    return round((low + high) / 2, 3)


def measured_preset(
    validation: Validation, *, model: ModelId, facts: Mapping[str, Any], target: Target
) -> SparseConfig:
    """Join settings with what was measured.

    Args:
        validation: of the settings.
        model: the fingerprint.
        facts: further fields of ``Measured``: device, dtype, tokens, versions, floor.
        target: what was asked for.
    """
    interval = validation.psnr
    bounds = None if interval.low is None else [interval.low, interval.high]
    measured = Measured(
        clips=interval.count,
        psnr=round(validation.scores.psnr, 3),
        psnr_interval=None if bounds is None else [round(b or 0.0, 3) for b in bounds],
        ssim=round(validation.scores.ssim, 5),
        lpips=_rounded(validation.scores.lpips, 5),
        speedup=round(validation.speedup, 3),
        predicted_speedup=_rounded(validation.predicted_speedup, 3),
        dense_seconds=round(validation.dense_seconds, 3),
        density=_rounded(validation.density, 4),
        overall_density=_rounded(validation.overall_density, 4),
        target=str(target),
        **facts,
    )
    note = f"Tuned for {target}: {validation.candidate.label}."
    return validation.candidate.config.model_copy(
        update={"status": "measured", "note": note, "model": model, "measured": measured}
    )


def _line(validation: Validation) -> str:
    low, high = validation.psnr.low, validation.psnr.high
    bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    verdict = "meets" if validation.meets else "misses"
    return (
        f"held-out: {validation.candidate.label} {verdict} the target: {validation.scores}"
        f"{bounds} at {validation.speedup:.2f}x"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
