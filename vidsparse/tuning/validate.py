"""Measure settings on prompts the search has not seen, and write the preset."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.preset_parts import Measured, ModelId
from vidsparse.quality import Interval, bootstrap_mean
from vidsparse.tuning.candidates import Candidate, Variant
from vidsparse.tuning.journal import Journal, clip_key
from vidsparse.tuning.lab import Trial
from vidsparse.tuning.search import Outcome, time_of
from vidsparse.tuning.settings import Lab, trial_or_refusal
from vidsparse.tuning.speed import SpeedModel
from vidsparse.tuning.target import Scores, Target
from vidsparse.tuning.tune import Search

# Share by which times may differ and still count as equal.
EQUAL_TIME = 0.03


@dataclass(frozen=True)
class Validation:
    """Settings on held-out scenes.

    Attributes:
        candidate: the settings.
        scores: means over the clips.
        psnr: mean with its interval.
        per_clip: scores of each clip.
        speedup: dense over sparse denoising time, summed over the clips; where the clips were
            generated in turns with a preset's, that preset's times its time over theirs.
        predicted_speedup: what the short runs predicted, or where they cannot, as for step
            caches, the tuning clips; None without either.
        density: mean of the sparse calls.
        overall_density: of all calls.
        reaches: whether the means meet the target.
        meets: whether they do, in less time than dense generation.
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
    reaches: bool
    meets: bool
    dense_seconds: float

    @property
    def verdict(self) -> str:
        """Say in words whether the target is met; it goes before the target."""
        if self.meets:
            return "meets"
        return "is no faster than dense, but meets" if self.reaches else "misses"

    def line(self) -> str:
        """Return the result for people."""
        low, high = self.psnr.low, self.psnr.high
        bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        return (
            f"{self.candidate.label} {self.verdict} the target: {self.scores}{bounds} at "
            f"{self.speedup:.2f}x"
        )

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
            "reaches": self.reaches,
            "meets": self.meets,
            "dense_seconds": self.dense_seconds,
        }


class RefusedError(UsageError):
    """A held-out clip cannot be generated with some settings."""


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

    def of(self, candidate: Candidate, *, beside: Validation | None = None) -> Validation:
        """Generate all held-out scenes with settings, each after its dense clip.

        Args:
            candidate: the settings.
            beside: a preset whose clips are generated once more in turns with these, to compare
                times: those of dense clips are from another hour.

        Raises:
            RefusedError: a clip cannot be generated with the settings.
        """
        dense, trials, others = [], [], []
        for scene in self.scenes:
            key = f"held-out dense {clip_key(scene)}"
            dense.append(self.journal.once(key, partial(self.lab.dense, scene)))
            trials.append(self._trial(candidate, scene))
            if beside is not None:
                others.append(self._seconds_beside(candidate, beside.candidate, scene))
        found = self._summary(candidate, dense, trials)
        if beside is None:
            return found
        seconds = sum(trial.seconds or 0.0 for trial in trials)
        return replace(found, speedup=beside.speedup * sum(others) / seconds)

    def _seconds_beside(self, candidate: Candidate, other: Candidate, scene: Scene) -> float:
        key = f"beside {candidate.key} {other.key} {clip_key(scene)}"
        seconds: float = self.journal.once(key, lambda: self.lab.trial(other.config, scene).seconds)
        return seconds

    def floor(self) -> float | None:
        """Return the mean PSNR between dense clips that differ in rounding only, in dB."""
        # A search that goes on may be given another floor.
        name = f"floor {self.lab.floor_name}"
        found = [
            self.journal.once(f"{name} {clip_key(scene)}", partial(self._floor_of, scene))
            for scene in self.scenes
        ]
        known = [value for value in found if value is not None]
        return fmean(known) if known else None

    def _floor_of(self, scene: Scene) -> float | None:
        scores = self.lab.floor(scene)
        return None if scores is None else scores.psnr

    def _trial(self, candidate: Candidate, scene: Scene) -> Trial:
        make = partial(trial_or_refusal, self.lab, candidate.config, scene)
        key = f"held-out {candidate.key} {clip_key(scene)}"
        trial = Trial.from_dict(self.journal.once(key, make))
        if trial.refused is not None:
            raise RefusedError(trial.refused)
        return trial

    def _summary(
        self, candidate: Candidate, dense: Sequence[float], trials: Sequence[Trial]
    ) -> Validation:
        scores = [trial.scores for trial in trials if trial.scores is not None]
        seconds = [trial.seconds for trial in trials if trial.seconds is not None]
        predicted = self.speed.expected(candidate)
        mean = Scores.mean(scores)
        reaches = self.target.met_by(mean)
        return Validation(
            candidate,
            mean,
            bootstrap_mean([s.psnr for s in scores], [scene.prompt for scene in self.scenes]),
            tuple(scores),
            sum(dense) / sum(seconds),
            None if predicted is None else self.speed.dense_seconds / predicted,
            _mean([trial.density for trial in trials]),
            _mean([trial.overall_density for trial in trials]),
            reaches,
            reaches and sum(seconds) < sum(dense),
            fmean(dense),
        )


def choose(search: Search, validator: Validator, *, most: int = 4) -> list[Validation]:
    """Validate the fastest outcome; where it misses on held-out scenes, other settings.

    Where quality was missing they are safer ones, where speed was the next in order. Settings
    that cannot make a held-out clip are skipped.

    Args:
        search: finished.
        validator: has the held-out scenes.
        most: candidates validated.

    Returns:
        Every validation, in order; the last one is the choice, if it meets the target.
    """
    dense = validator.speed.dense_seconds
    times = {o.candidate.key: time_of(o, validator.speed.predict) for o in search.outcomes}
    faster = [o for o in search.outcomes if o.reaches and times[o.candidate.key] < dense]
    queue = sorted(faster, key=lambda outcome: times[outcome.candidate.key])
    done: list[Validation] = []
    candidate = queue[0].candidate if queue else None
    while candidate is not None and len(done) < most:
        key = candidate.key
        queue = [outcome for outcome in queue if outcome.candidate.key != key]
        found = _validated(search, validator, candidate)
        if found is not None:
            done.append(found)
            if found.meets:
                break
        if found is not None and not found.reaches:
            candidate = _safer(search.outcomes, queue, found, validator)
        elif queue:
            candidate = queue[0].candidate
        else:
            # What refuses a density may take a larger one; for speed there is none.
            candidate = denser(candidate, 1.2) if found is None else None
    return done


def _validated(search: Search, validator: Validator, candidate: Candidate) -> Validation | None:
    try:
        found = validator.of(candidate)
    except RefusedError as error:
        search.skipped[candidate.label] = f"on a held-out clip: {error}"
        search.say(f"held-out: {candidate.label} is skipped: {error}")
        return None
    search.say(f"held-out: {found.line()}")
    return found


def _safer(
    outcomes: Sequence[Outcome],
    queue: Sequence[Outcome],
    missed: Validation,
    validator: Validator,
) -> Candidate | None:
    """Return the fastest of a queue with as much more room as was missing, or a larger density."""
    lacking = -validator.target.slack(missed.scores)
    own = {outcome.candidate.key: outcome for outcome in outcomes}.get(missed.candidate.key)
    if own is not None and own.scores is not None:
        needed = validator.target.slack(own.scores) + lacking
        for outcome in queue:
            if outcome.scores is not None and validator.target.slack(outcome.scores) >= needed:
                return outcome.candidate
    return denser(missed.candidate, 1.2)


def denser(candidate: Candidate, factor: float) -> Candidate | None:
    """Return settings with all densities raised, at most to 1.

    None where there are none, where they cannot rise, and where the method refuses more.
    """
    config = candidate.config
    if config.method == "dense":
        return None
    raised = min(0.95, candidate.density * factor)
    parameters = {**config.parameters, "density": round(raised, 4)}
    bands = [band.scaled(factor) for band in config.bands]
    config = config.model_copy(update={"parameters": parameters, "bands": bands})
    try:
        config.build()
    except UsageError:
        return None
    label = candidate.label.split(", raised")[0]
    made = Candidate(f"{label}, raised to density {raised:.3f}", config)
    return made if made.density > candidate.density else None


def at_equal_time(
    validator: Validator, variant: Variant, tuned: Validation, dense_above_sigma: float | None
) -> Validation:
    """Validate a method's defaults at the density that takes as long as a preset.

    The density comes from the predicted time. Where clips take another time, in turns with the
    preset's, it is chosen once more, from the prediction corrected by them.

    Args:
        validator: has the held-out scenes; its speed model has timed the variant.
        variant: the defaults.
        tuned: the preset.
        dense_above_sigma: the default warm-up as a noise level.

    Returns:
        The validation whose time is nearer.
    """
    speed = validator.speed
    seconds = speed.dense_seconds / tuned.speedup
    made = _default_taking(variant, speed, seconds, dense_above_sigma)
    first = validator.of(made, beside=tuned)
    off = speed.dense_seconds / first.speedup / seconds
    if abs(off - 1) <= EQUAL_TIME:
        return first
    predicted = speed.dense_seconds / (first.predicted_speedup or first.speedup)
    corrected = predicted / off
    second = _default_taking(variant, speed, corrected, dense_above_sigma)
    if second.key == first.candidate.key:
        return first
    found = (first, validator.of(second, beside=tuned))
    return min(found, key=lambda row: abs(math.log(speed.dense_seconds / row.speedup / seconds)))


def _default_taking(
    variant: Variant, speed: SpeedModel, seconds: float, dense_above_sigma: float | None
) -> Candidate:
    density = speed.density_for(variant, seconds, dense_above_sigma)
    config = variant.config(density, dense_above_sigma)
    return Candidate(f"{variant.method} defaults, density {density:.3f}", config)


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
        target=target.as_dict(),
        **facts,
    )
    note = f"Tuned for {target}: {validation.candidate.label}."
    return validation.candidate.config.model_copy(
        update={"status": "measured", "note": note, "model": model, "measured": measured}
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
