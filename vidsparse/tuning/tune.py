"""The search among settings, from scouting to the fastest that reach the target."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.tuning.allocate import layer_bands
from vidsparse.tuning.candidates import (
    Arm,
    Candidate,
    Variant,
    cache_arms,
    dense_config,
    warm_up_sigma,
)
from vidsparse.tuning.errors import OutputError, PlanErrors, from_rows
from vidsparse.tuning.journal import Journal, clip_key
from vidsparse.tuning.lab import Doomed, Trial
from vidsparse.tuning.scout import Scout
from vidsparse.tuning.search import Best, Outcome, search_arm, time_of
from vidsparse.tuning.settings import Lab, TuneSettings, trial_or_refusal
from vidsparse.tuning.speed import SpeedModel
from vidsparse.tuning.target import Scores

# Densities and steps at which the winner's layers are looked at.
CELL_DENSITIES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
CELL_STEPS = (0.25, 0.5, 0.75, 0.95)
# Densities tried last, as shares of the best one of the ladder.
FINER = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
# A clip that misses the target by more units than this condemns its candidate at once.
CLEARLY = 2.0


@dataclass
class Search:
    """A search under way, and what it found.

    Attributes:
        lab: generates.
        journal: keeps results.
        settings: what to search.
        say: told about each result, one line.
        now: seconds on any clock, for the time limit.
        outcomes: of every candidate generated, in order.
        best: the fastest outcome that reaches the target.
        scout: what was learnt before.
    """

    lab: Lab
    journal: Journal
    settings: TuneSettings
    say: Callable[[str], None] = lambda line: None
    now: Callable[[], float] = time.monotonic
    outcomes: list[Outcome] = field(default_factory=list)
    best: Best = field(default_factory=lambda: Best(math.inf))
    scout: Scout = field(init=False)
    _trials: dict[tuple[str, int], Trial] = field(default_factory=dict)
    _began: float = 0.0

    def __post_init__(self) -> None:
        self.scout = Scout(self.lab, self.journal, self.settings, self.say)

    @property
    def speed(self) -> SpeedModel:
        """What predicts times.

        Raises:
            UsageError: the search has not run.
        """
        if self.scout.speed is None:
            raise UsageError("run the search first")
        return self.scout.speed

    @property
    def skipped(self) -> dict[str, str]:
        """What was not tried, and why."""
        return self.scout.skipped

    def run(self) -> Best:
        """Search; the best settings on the tuning scenes, or dense generation.

        Raises:
            UsageError: nothing can run on this model.
        """
        self._began = self.now()
        variants = self.scout.learn()
        self.best = Best(self.speed.dense_seconds, self.speed.predict)
        for share in self.settings.warm_ups:
            for variant in variants:
                self._search(variant.arm(share, warm_up_sigma(self.scout.sigmas, share)))
        self._search_caches({"dense": dense_config()})
        self._search_between()
        sparse = self.best.outcome
        if sparse is not None and sparse.candidate.config.cache is None:
            if self.settings.allocate:
                self._search_budgets(sparse.candidate)
            if self.settings.eight_bit:
                self._search_eight_bit((self.best.outcome or sparse).candidate)
        uncached = self._best_uncached()
        if uncached is not None:
            self._search_caches({uncached.candidate.label: uncached.candidate.config})
        return self.best

    def _best_uncached(self) -> Outcome | None:
        """Return what caches go on: a cache alone may beat all that has none."""
        known = [o for o in self.outcomes if o.reaches and o.candidate.config.cache is None]
        return min(known, key=lambda o: time_of(o, self.speed.predict), default=None)

    def probe(self, candidate: Candidate) -> Outcome:
        """Generate with a candidate on the tuning scenes, and judge it."""
        target, trials, stopped = self.settings.target, [], None
        for index in range(len(self.settings.tuning)):
            trial = self._trial(candidate, index)
            trials.append(trial)
            if trial.refused is not None:
                stopped = self.skipped[candidate.label] = trial.refused
            elif trial.scores is None:
                stopped = f"given up after step {trial.stopped}"
            elif target.slack(trial.scores) < -CLEARLY:
                stopped = "clip far below the target"
            if stopped is not None and index + 1 < len(self.settings.tuning):
                break
        outcome = self._judged(candidate, trials, stopped)
        self.outcomes.append(outcome)
        if outcome.seconds is not None:
            self.speed.learn(candidate, outcome.seconds)
        self.say(self._line(outcome))
        return outcome

    def _judged(
        self, candidate: Candidate, trials: Sequence[Trial], stopped: str | None
    ) -> Outcome:
        whole = [trial for trial in trials if trial.scores is not None]
        scores = Scores.mean([t.scores for t in whole if t.scores is not None]) if whole else None
        seconds = fmean(t.seconds for t in whole if t.seconds is not None) if whole else None
        complete = len(whole) == len(self.settings.tuning)
        reaches = complete and scores is not None and self.settings.target.met_by(scores)
        return Outcome(candidate, reaches, scores, seconds, len(whole), stopped)

    def _trial(self, candidate: Candidate, index: int) -> Trial:
        scene, doomed = self.settings.tuning[index], self._doomed(candidate, index)
        values = self.journal.once(
            f"trial {candidate.key} {clip_key(scene)}",
            partial(trial_or_refusal, self.lab, candidate.config, scene, doomed),
        )
        trial = Trial.from_dict(values)
        self._trials[candidate.key, index] = trial
        return trial

    def _doomed(self, candidate: Candidate, index: int) -> Doomed:
        """Give up a clip that is further off than one of the same warm-up that ended badly."""
        worst: dict[int, float] = {}
        for outcome in self.outcomes:
            same = _schedule(outcome.candidate.config) == _schedule(candidate.config)
            trial = self._trials.get((outcome.candidate.key, index))
            if not same or outcome.reaches or trial is None or trial.scores is None:
                continue
            if self.settings.target.slack(trial.scores) < -CLEARLY / 2:
                for step, error in trial.checks:
                    worst[step] = min(error, worst.get(step, math.inf))

        def doomed(step: int, error: float) -> bool:
            # Equal errors say nothing: both may still be where no step was sparse.
            return error > worst.get(step, math.inf)

        return doomed

    def _search(self, arm: Arm) -> None:
        if self._late(arm.label):
            return
        late = lambda candidate: self._late(candidate.label)  # noqa: E731
        search_arm(arm, self.best, self.probe, late=late)

    def _late(self, label: str) -> bool:
        """Say whether to leave something out for time; kept, so that it is the same again."""
        if self.settings.seconds is None:
            return False
        if not self.journal.once(f"late for {label}", self._out_of_time):
            return False
        self.skipped[label] = "the time limit was reached"
        return True

    def _search_caches(self, configs: dict[str, SparseConfig]) -> None:
        for arm in cache_arms(configs, self.settings.caches):
            self._search(arm)

    def _search_between(self) -> None:
        """Try densities between the best one of the ladder and the next below it."""
        found = self.best.outcome
        if found is None or found.candidate.config.cache is not None:
            return
        config, density = found.candidate.config, found.candidate.density
        tried = {o.candidate.density for o in self.outcomes if _is_near(o.candidate.config, config)}
        below = max((other for other in tried if other < density), default=0.0)
        finer = [round(share * density, 4) for share in FINER if share * density > below + 1e-6]
        label = found.candidate.label.rsplit(", density", 1)[0]
        ladder = tuple(
            Candidate(f"{label}, density {d:g}", _with_density(config, d)) for d in finer
        )
        self._search(Arm(f"{label}, finer densities", ladder))

    def _search_budgets(self, uniform: Candidate) -> None:
        """Try the best settings with densities by layer, and by layer and noise level."""
        rest = {k: v for k, v in uniform.config.parameters.items() if k != "density"}
        variant = Variant(uniform.config.method, rest, CELL_DENSITIES)
        looker = PlanErrors([variant], CELL_DENSITIES)
        make = partial(self.scout.observed, looker, CELL_STEPS)
        kept = self.journal.once(f"cells {variant.label}", make)
        found = _common_densities(from_rows(kept["rows"]))
        if not found:
            self.skipped["densities by layer"] = "; ".join(sorted(set(kept["skipped"].values())))
            return
        sparse = self.speed.sparse_sigmas(uniform.config)
        least = min(each.density for each in found)
        means = [round(share * uniform.density, 4) for share in FINER]
        means = [mean for mean in means if mean >= least]
        for by_noise in (False, True):
            name = f"{variant.label}, densities by layer{' and noise' if by_noise else ''}"
            made = [(m, _banded(uniform.config, found, sparse, m, by_noise)) for m in means]
            ladder = tuple(Candidate(f"{name}, mean {mean:g}", config) for mean, config in made)
            self._search(Arm(name, ladder))

    def _search_eight_bit(self, native: Candidate) -> None:
        """Try settings in 8 bits; where nothing can compute that, they count as a miss."""
        config = native.config.model_copy(update={"precision": "8bit-sparse"})
        label = f"{native.label}, 8 bits"
        self._search(Arm(label, (Candidate(label, config),)))

    def _out_of_time(self) -> bool:
        limit = self.settings.seconds
        # What was learnt before would be for nothing without one candidate.
        return limit is not None and bool(self.outcomes) and self.now() - self._began > limit

    def _line(self, outcome: Outcome) -> str:
        dense, seconds = self.speed.dense_seconds, outcome.seconds
        speed = "" if seconds is None else f" at {dense / seconds:.2f}x"
        scores = outcome.scores or "no clip finished"
        verdict = "reaches" if outcome.reaches else "misses"
        why = "" if outcome.stopped is None else f" ({outcome.stopped})"
        return f"{verdict}: {outcome.candidate.label}: {scores}{speed}{why}"


def _schedule(config: SparseConfig) -> tuple[Any, ...]:
    return config.dense_above_sigma, None if config.cache is None else config.cache.name


def _is_near(config: SparseConfig, other: SparseConfig) -> bool:
    """Say whether two settings differ in their density only."""
    return _with_density(config, 1.0) == _with_density(other, 1.0)


def _with_density(config: SparseConfig, density: float) -> SparseConfig:
    return config.model_copy(update={"parameters": {**config.parameters, "density": density}})


def _common_densities(found: Sequence[OutputError]) -> list[OutputError]:
    """Keep the densities that every call has: a method may refuse the least ones."""
    calls = {(each.layer, each.step) for each in found}
    by = {
        each.density: {(e.layer, e.step) for e in found if e.density == each.density}
        for each in found
    }
    return [each for each in found if by[each.density] == calls]


def _banded(
    config: SparseConfig,
    found: Sequence[OutputError],
    sigmas: Sequence[float],
    mean: float,
    by_noise: bool,
) -> SparseConfig:
    bands = layer_bands(found, sigmas, mean, by_noise=by_noise)
    return config.model_copy(update={"bands": bands})
