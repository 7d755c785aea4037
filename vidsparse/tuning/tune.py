"""The search from statistics to a validated preset."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, Protocol

from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.profiling.dense_run import ObservedAttention
from vidsparse.tuning.allocate import layer_bands
from vidsparse.tuning.candidates import (
    Arm,
    Candidate,
    Variant,
    cache_arms,
    dense_config,
    variants_of,
    warm_up_sigma,
)
from vidsparse.tuning.errors import OutputError, PlanErrors, as_rows, from_rows, mean_errors
from vidsparse.tuning.journal import Journal
from vidsparse.tuning.lab import Doomed, Trial, never
from vidsparse.tuning.search import Best, Outcome, search_arm
from vidsparse.tuning.speed import SHORT_STEPS, SpeedModel, StepTimes, time_variant, variant_key
from vidsparse.tuning.target import Scores, Target

# Densities at which variants are ranked, and looks for that: layers and steps.
RANK_DENSITIES = (0.2, 0.4)
RANK_LAYERS, RANK_STEPS = 3, (0.35, 0.75)
# Densities and steps at which the winner's layers are looked at.
CELL_DENSITIES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
CELL_STEPS = (0.25, 0.5, 0.75, 0.95)
# Densities tried last, as shares of the best one of the ladder.
FINER = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
# Shares of the steps that may stay dense, in the order tried.
WARM_UPS = (0.2, 0.1, 0.3, 0.0)
# A clip that misses the target by more units than this condemns its candidate at once.
CLEARLY = 2.0


class Lab(Protocol):
    """Where candidates are generated; ``PipelineLab`` is one."""

    def dense(self, scene: Scene) -> float:
        """Generate a reference; return its seconds."""

    def observe(self, attention: ObservedAttention, scene: Scene) -> None:
        """Generate densely under observation."""

    def trial(self, config: SparseConfig, scene: Scene, doomed: Doomed = never) -> Trial:
        """Generate with settings and measure."""

    def short(self, config: SparseConfig | None, steps: int, scene: Scene) -> list[float]:
        """Time a few steps."""

    def floor(self, scene: Scene) -> Scores | None:
        """Compare two dense clips that differ in rounding."""


@dataclass(frozen=True)
class TuneSettings:
    """What to search.

    Attributes:
        target: quality asked for.
        tuning: scenes that candidates are tried on.
        methods: names; None for all that are no controls.
        caches: names of step caches; empty for none.
        keep: variants that are generated with, the best by statistics.
        warm_ups: shares of the steps that may stay dense.
        allocate: also try densities by layer and noise level.
        seconds: no candidate is begun after this many; None for no limit.

    Raises:
        UsageError: there are no scenes.
    """

    target: Target
    tuning: tuple[Scene, ...]
    methods: tuple[str, ...] | None = None
    caches: tuple[str, ...] = ("first_block", "taylorseer")
    keep: int = 3
    warm_ups: tuple[float, ...] = WARM_UPS
    allocate: bool = True
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.tuning:
            raise UsageError("tuning needs at least one prompt")


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
        skipped: what was not tried, and why.
        ranking: (variant, mean error) from the statistics, best first.
        sigmas: noise level of each step.
        tokens: of an attention call.
        speed: predicts times.
        best: the fastest outcome that reaches the target.
    """

    lab: Lab
    journal: Journal
    settings: TuneSettings
    say: Callable[[str], None] = lambda line: None
    now: Callable[[], float] = time.monotonic
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    ranking: list[tuple[str, float]] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    tokens: int | None = None
    speed: SpeedModel | None = None
    best: Best = field(default_factory=lambda: Best(math.inf))
    _trials: dict[tuple[str, int], Trial] = field(default_factory=dict)
    _began: float = 0.0

    def run(self) -> Best:
        """Search; the best settings on the tuning scenes, or dense generation.

        Raises:
            UsageError: nothing can run on this model.
        """
        self._began = self.now()
        dense_seconds = self._references()
        self.best = Best(dense_seconds)
        variants = self._ranked(self._statistics())
        self.speed = self._timed(variants, dense_seconds)
        for share in self.settings.warm_ups:
            for variant in variants:
                self._search(variant.arm(share, warm_up_sigma(self.sigmas, share)))
        self._search_caches({"dense": dense_config()})
        self._search_between()
        sparse = self.best.outcome
        if sparse is not None and sparse.candidate.config.cache is None:
            if self.settings.allocate:
                self._search_budgets(sparse.candidate)
            chosen = self.best.outcome or sparse
            self._search_caches({chosen.candidate.label: chosen.candidate.config})
        return self.best

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
        if outcome.seconds is not None and self.speed is not None:
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
            f"trial {candidate.key} {index}", lambda: self._made(candidate, scene, doomed)
        )
        trial = Trial.from_dict(values)
        self._trials[candidate.key, index] = trial
        return trial

    def _made(self, candidate: Candidate, scene: Scene, doomed: Doomed) -> dict[str, Any]:
        """Generate; settings that cannot run here, such as too small a density, are a miss."""
        try:
            return self.lab.trial(candidate.config, scene, doomed).as_dict()
        except UsageError as error:
            return Trial(None, None, refused=str(error)).as_dict()

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

    def _references(self) -> float:
        seconds = [
            self.journal.once(f"dense {index}", partial(self.lab.dense, scene))
            for index, scene in enumerate(self.settings.tuning)
        ]
        self.say(f"dense: {fmean(seconds):.2f} s of denoising a clip")
        return fmean(seconds)

    def _statistics(self) -> list[OutputError]:
        """Look at all variants inside one dense generation."""
        variants = variants_of(self.settings.methods)
        kept = self.journal.once(
            "statistics",
            lambda: self._observed(PlanErrors(variants, RANK_DENSITIES, RANK_LAYERS), RANK_STEPS),
        )
        self.skipped.update(kept["skipped"])
        self.sigmas, self.tokens = kept["sigmas"], kept["tokens"]
        return from_rows(kept["rows"])

    def _observed(self, looker: PlanErrors, look_at: Sequence[float]) -> dict[str, Any]:
        sigmas = _SigmaLog()
        attention = ObservedAttention((looker,), tuple(look_at), recorder=sigmas)
        self.lab.observe(attention, self.settings.tuning[0])
        return {
            "rows": as_rows(looker.found),
            "skipped": looker.skipped,
            "sigmas": sigmas.levels(),
            "branches": attention.branches,
            "tokens": None if attention.layout is None else attention.layout.num_tokens,
        }

    def _ranked(self, found: Sequence[OutputError]) -> list[Variant]:
        """Return the variants with least error, at most two of a method."""
        errors = {
            v: fmean(math.log(max(e, 1e-12)) for e in by.values())
            for v, by in mean_errors(found).items()
            if len(by) == len(RANK_DENSITIES)
        }
        if not errors:
            raise UsageError(
                "no sparse method can run on this model at this size: "
                + "; ".join(sorted(set(self.skipped.values())))[:300]
            )
        self.ranking = sorted(((v, math.exp(e)) for v, e in errors.items()), key=lambda x: x[1])
        by_label = {v.label: v for v in variants_of(self.settings.methods)}
        chosen: list[Variant] = []
        for label, _ in self.ranking:
            variant = by_label[label]
            if sum(other.method == variant.method for other in chosen) < 1:
                chosen.append(variant)
        for variant in chosen:
            error = math.exp(errors[variant.label])
            self.say(f"statistics: {variant.label} has output error {error:.4f}")
        return chosen[: self.settings.keep]

    def _timed(self, variants: Sequence[Variant], dense_seconds: float) -> SpeedModel:
        scene = self.settings.tuning[0]
        dense = self.journal.once("short dense", lambda: self.lab.short(None, SHORT_STEPS, scene))
        model = SpeedModel(dense_seconds, fmean(dense[1:]), self.sigmas)
        self.speed = model
        for variant in variants:
            self.time(variant)
            least = Candidate("", variant.config(variant.densities[-1], None))
            seconds = model.predict(least) or math.inf
            self.say(
                f"speed: {variant.label} at density {variant.densities[-1]:g} predicts "
                f"{dense_seconds / seconds:.2f}x"
            )
        return model

    def time(self, variant: Variant) -> None:
        """Time a few steps of a variant, so that its clips can be predicted.

        Raises:
            UsageError: it cannot run on this model.
        """
        if self.speed is None:
            raise UsageError("time the dense steps first")
        kept = self.journal.once(f"short {variant.label}", lambda: self._short(variant))
        (d0, t0), (d1, t1) = kept["at"]
        times = StepTimes(kept["first_extra"], ((d0, t0), (d1, t1)))
        self.speed.variants[variant_key(variant.config(0.5, None))] = times

    def _short(self, variant: Variant) -> dict[str, Any]:
        scene = self.settings.tuning[0]
        times = time_variant(
            variant, lambda config, steps: self.lab.short(config, steps, scene), RANK_DENSITIES
        )
        return {"first_extra": times.first_extra, "at": times.at}

    def _search(self, arm: Arm) -> None:
        if self._out_of_time():
            self.skipped[arm.label] = "the time limit was reached"
            return
        search_arm(arm, self.best, self.probe, self._predict)

    def _predict(self, candidate: Candidate) -> float | None:
        return None if self.speed is None else self.speed.predict(candidate)

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
        kept = self.journal.once(
            f"cells {variant.label}",
            lambda: self._observed(PlanErrors([variant], CELL_DENSITIES), CELL_STEPS),
        )
        found = _common_densities(from_rows(kept["rows"]))
        if self.speed is None or not found:
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

    def _out_of_time(self) -> bool:
        limit = self.settings.seconds
        return limit is not None and self.now() - self._began > limit

    def _line(self, outcome: Outcome) -> str:
        speed = "" if outcome.seconds is None else f" at {self._dense() / outcome.seconds:.2f}x"
        scores = outcome.scores or "no clip finished"
        verdict = "reaches" if outcome.reaches else "misses"
        why = "" if outcome.stopped is None else f" ({outcome.stopped})"
        return f"{verdict}: {outcome.candidate.label}: {scores}{speed}{why}"

    def _dense(self) -> float:
        return math.nan if self.speed is None else self.speed.dense_seconds


class _SigmaLog:
    """Takes the place of a recorder to learn the noise level of each step."""

    def __init__(self) -> None:
        self._found: dict[int, float] = {}

    def record_dense(self, reason: str, site: Any) -> None:
        if site.sigma is not None:
            self._found.setdefault(site.step, site.sigma)

    def levels(self) -> list[float]:
        return [self._found[step] for step in sorted(self._found)]


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
