"""What is learnt before the search: errors of single calls, times, a clip of each variant."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, median
from typing import Any

from vidsparse.clips import Scene
from vidsparse.errors import UsageError
from vidsparse.profiling.dense_run import ObservedAttention
from vidsparse.tuning.candidates import Candidate, Variant, variants_of, warm_up_sigma
from vidsparse.tuning.errors import OutputError, PlanErrors, as_rows, from_rows, mean_errors
from vidsparse.tuning.journal import Journal, clip_key
from vidsparse.tuning.lab import Trial
from vidsparse.tuning.settings import Lab, TuneSettings, trial_or_refusal
from vidsparse.tuning.speed import SHORT_STEPS, SpeedModel, StepTimes, time_variant, variant_key

# Densities at which variants are ranked, larger ones for those that a variant refuses at a small
# size, and looks for that: layers and steps.
RANK_DENSITIES = (0.2, 0.4)
SPARE_DENSITIES = (0.6, 0.7)
RANK_LAYERS, RANK_STEPS = 3, (0.35, 0.75)
# Where variants are screened: dense steps, and the density of the median one.
SCREEN_WARM_UP, SCREEN_DENSITY = 0.2, 0.3
# Variants whose first clips end so near to each other, in units of slack, are shown all clips.
SCREEN_CLOSE = 4.0


@dataclass
class Scout:
    """Learns what the search needs.

    Attributes:
        lab: generates.
        journal: keeps results.
        settings: what to search.
        say: told about each result, one line.
        skipped: what cannot run here, and why.
        ranking: (variant, mean output error) from the statistics, best first.
        screening: (variant, room that its clips leave to the target) at equal predicted time, best
            first.
        sigmas: noise level of each step.
        tokens: of an attention call.
        ranked_at: by variant, the two densities that it was ranked and is timed at, where the
            usual ones are refused.
        speed: predicts times; None before ``learn``.
    """

    lab: Lab
    journal: Journal
    settings: TuneSettings
    say: Callable[[str], None] = lambda line: None
    skipped: dict[str, str] = field(default_factory=dict)
    ranking: list[tuple[str, float]] = field(default_factory=list)
    screening: list[tuple[str, float]] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    tokens: int | None = None
    ranked_at: dict[str, tuple[float, float]] = field(default_factory=dict)
    speed: SpeedModel | None = None

    def learn(self) -> list[Variant]:
        """Make the references, and return the variants worth generating with, best first.

        They are of different methods: at the target another one may be the fastest than at equal
        time, and two variants of one method seldom differ by as much.

        Raises:
            UsageError: no method can run on this model at this size.
        """
        dense_seconds = self._references()
        ranked = self._ranked(self._statistics())
        self._time_dense(dense_seconds)
        timed = [variant for variant in ranked if self._can_be_timed(variant)]
        if not timed:
            raise self._nothing_runs()
        best: dict[str, Variant] = {}
        for variant in self._screened(timed):
            best.setdefault(variant.method, variant)
        return list(best.values())[: self.settings.keep]

    def time(self, variant: Variant) -> None:
        """Time a few steps of a variant, so that its clips can be predicted.

        Raises:
            UsageError: it cannot run on this model.
        """
        model = self._speed()
        kept = self.journal.once(f"short {variant.label}", partial(self._short, variant))
        times = StepTimes.from_dict(kept)
        model.variants[variant_key(variant.config(0.5, None))] = times
        for density, kinds in times.at:
            parts = [f"{name} {t / model.dense_step:.2f}".strip() for name, t in kinds.items()]
            self.say(
                f"speed: {variant.label} at density {density:g} takes {', '.join(parts)} of a "
                "dense step"
            )

    def _can_be_timed(self, variant: Variant) -> bool:
        try:
            self.time(variant)
        except UsageError as error:
            self.skipped[variant.label] = str(error)
            self.say(f"speed: {variant.label} is skipped: {error}")
            return False
        return True

    def _nothing_runs(self) -> UsageError:
        reasons = "; ".join(sorted(set(self.skipped.values())))
        return UsageError(f"no sparse method can run on this model at this size: {reasons[:300]}")

    def observed(self, looker: PlanErrors, look_at: Sequence[float]) -> dict[str, Any]:
        """Show one dense generation to a looker; JSON values of what was found."""
        sigmas = _SigmaLog()
        attention = ObservedAttention((looker,), tuple(look_at), recorder=sigmas)
        self.lab.observe(attention, self.settings.tuning[0])
        return {
            "rows": as_rows(looker.found),
            "skipped": looker.skipped,
            "sigmas": sigmas.levels(),
            "tokens": None if attention.layout is None else attention.layout.num_tokens,
        }

    def _speed(self) -> SpeedModel:
        if self.speed is None:
            raise UsageError("time the dense steps first")
        return self.speed

    def _references(self) -> float:
        seconds = [
            self.journal.once(f"dense {clip_key(scene)}", partial(self.lab.dense, scene))
            for scene in self.settings.tuning
        ]
        self.say(f"dense: {fmean(seconds):.2f} s of denoising a clip")
        return fmean(seconds)

    def _statistics(self) -> list[OutputError]:
        """Look at all variants inside one dense generation."""
        variants = variants_of(self.settings.methods)
        looker = PlanErrors(variants, RANK_DENSITIES, RANK_LAYERS, SPARE_DENSITIES)
        kept = self.journal.once("statistics", partial(self.observed, looker, RANK_STEPS))
        self.skipped.update(kept["skipped"])
        self.sigmas, self.tokens = kept["sigmas"], kept["tokens"]
        return from_rows(kept["rows"])

    def _ranked(self, found: Sequence[OutputError]) -> list[Variant]:
        """Return each method's variant with the least error, and its defaults."""
        known = {v.label: v for v in variants_of(self.settings.methods)}
        by_density = {k: by for k, by in mean_errors(found).items() if len(by) > 1}
        self._note_densities(by_density)
        errors = _comparable(by_density, {label: v.method for label, v in known.items()})
        if not errors:
            raise self._nothing_runs()
        self.ranking = sorted(errors.items(), key=lambda row: row[1])
        best: dict[str, Variant] = {}
        for label, _ in self.ranking:
            best.setdefault(known[label].method, known[label])
        for variant in best.values():
            where = "".join(
                f" at densities {low:g} and {high:g}, less is refused"
                for low, high in [self.ranked_at[variant.label]]
                if low > RANK_DENSITIES[0]
            )
            self.say(
                f"statistics: {variant.label} has output error {errors[variant.label]:.4f}{where}"
            )
        defaults = [known[name] for name in best if best[name].label != name and name in errors]
        return [*best.values(), *defaults]

    def _note_densities(self, found: Mapping[str, Mapping[float, float]]) -> None:
        for label, by in found.items():
            low, high = sorted(by)[:2]
            self.ranked_at[label] = low, high

    def _least(self, variant: Variant) -> float:
        """Return a density that a variant takes here where it refuses small ones, else 0."""
        low = self.ranked_at.get(variant.label, RANK_DENSITIES)[0]
        return low if low > RANK_DENSITIES[0] else 0.0

    def _time_dense(self, dense_seconds: float) -> None:
        scene = self.settings.tuning[0]
        make = partial(self.lab.short, None, SHORT_STEPS, scene)
        dense = self.journal.once("short dense", make)
        self.speed = SpeedModel(dense_seconds, median(dense[1:]), self.sigmas)

    def _short(self, variant: Variant) -> dict[str, Any]:
        scene = self.settings.tuning[0]
        times = time_variant(
            variant,
            lambda config, steps: self.lab.short(config, steps, scene),
            self.ranked_at.get(variant.label, RANK_DENSITIES),
        )
        return times.as_dict()

    def _screened(self, variants: Sequence[Variant]) -> list[Variant]:
        """Generate clips with each at equal predicted time; order by how near they end.

        Neither output errors of single calls nor latents half-way tell that. One clip does where
        variants lie far apart; those near the best are generated on all.
        """
        sigma = warm_up_sigma(self.sigmas, SCREEN_WARM_UP)
        model = self._speed()
        made = [Candidate("", v.config(SCREEN_DENSITY, sigma)) for v in variants]
        seconds = median(model.predict_raw(each) or math.inf for each in made)
        densities = {
            v.label: model.density_for(v, seconds, sigma, least=self._least(v)) for v in variants
        }
        candidates = {
            v.label: Candidate(v.label, v.config(densities[v.label], sigma)) for v in variants
        }
        first, *others = self.settings.tuning
        room = {label: self._room(each, [first]) for label, each in candidates.items()}
        best = max(room.values())
        near = [label for label, left in room.items() if best - left <= SCREEN_CLOSE and others]
        room |= {label: self._room(candidates[label], self.settings.tuning) for label in near}
        # Those near the best come first, whatever the others' one clip says.
        ranked = sorted(room, key=lambda label: (label not in near, -room[label]))
        self.screening = [(label, room[label]) for label in ranked if room[label] > -math.inf]
        for label, left in self.screening:
            self._learn_times(candidates[label], self.settings.tuning if label in near else [first])
            self.say(f"clips: {label} at density {candidates[label].density:.3f}: room {left:+.2f}")
        known = {variant.label: variant for variant in variants}
        return [known[label] for label, _ in self.screening] or list(variants)

    def _room(self, candidate: Candidate, scenes: Sequence[Scene]) -> float:
        """Return the mean slack of clips; -inf where the settings cannot run."""
        trials = [self._clip(candidate, scene) for scene in scenes]
        scores = [trial.scores for trial in trials if trial.scores is not None]
        if len(scores) < len(trials):
            return -math.inf
        return fmean(self.settings.target.slack(each) for each in scores)

    def _learn_times(self, candidate: Candidate, scenes: Sequence[Scene]) -> None:
        for scene in scenes:
            seconds = self._clip(candidate, scene).seconds
            if seconds is not None:
                self._speed().learn(candidate, seconds)

    def _clip(self, candidate: Candidate, scene: Scene) -> Trial:
        make = partial(trial_or_refusal, self.lab, candidate.config, scene)
        key = f"screen {candidate.key} {clip_key(scene)}"
        trial = Trial.from_dict(self.journal.once(key, make))
        if trial.refused is not None:
            self.skipped[f"{candidate.label} at density {candidate.density:g}"] = trial.refused
        return trial


def _comparable(
    found: Mapping[str, Mapping[float, float]], methods: Mapping[str, str]
) -> dict[str, float]:
    """Return one error per variant: the geometric mean over densities.

    Variants of one method are compared at the densities that all of them take, if there are any:
    at a larger one each has less error.
    """
    shared: dict[str, set[float]] = {}
    for label, by in found.items():
        shared[methods[label]] = shared.get(methods[label], set(by)) & set(by)
    errors = {}
    for label, by in found.items():
        at = shared[methods[label]] or set(by)
        errors[label] = math.exp(fmean(math.log(max(by[density], 1e-12)) for density in at))
    return errors


class _SigmaLog:
    """Takes the place of a recorder to learn the noise level of each step."""

    def __init__(self) -> None:
        self._found: dict[int, float] = {}

    def record_dense(self, reason: str, site: Any) -> None:
        if site.sigma is not None:
            self._found.setdefault(site.step, site.sigma)

    def levels(self) -> list[float]:
        return [self._found[step] for step in sorted(self._found)]
