"""Predict denoising times from a few timed steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from vidsparse.config import SparseConfig
from vidsparse.methods.banded import Banded
from vidsparse.methods.base import SparseMethod, build_method
from vidsparse.tuning.candidates import Candidate, Variant

# Steps of a short run; the first one is set apart, since methods begin with more work.
SHORT_STEPS = 6
# How much longer a step at the smaller density may take than one at the larger.
_DISTURBED = 1.5


@dataclass(frozen=True)
class StepTimes:
    """What steps of a variant take, from short runs at two densities.

    Methods that search at some steps and reuse at others have kinds of steps, after
    ``SparseMethod.phases``; all others have one, "".

    Attributes:
        first_extra: seconds the first sparse step takes more than others of its kind.
        at: density, and seconds of a step by kind; two pairs.
    """

    first_extra: float
    at: tuple[tuple[float, Mapping[str, float]], tuple[float, Mapping[str, float]]]

    def step(self, density: float, kind: str = "") -> float:
        """Return the seconds of a sparse step, linear in the density."""
        (d0, low), (d1, high) = self.at
        t0, t1 = (times.get(kind, max(times.values())) for times in (low, high))
        return t0 + (t1 - t0) * (density - d0) / (d1 - d0)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"first_extra": self.first_extra, "at": [[d, dict(times)] for d, times in self.at]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StepTimes":
        """Read what ``as_dict`` returned."""
        low, high = ((float(d), times) for d, times in values["at"])
        return cls(values["first_extra"], (low, high))


@dataclass
class SpeedModel:
    """Times of whole clips from times of steps.

    Attributes:
        dense_seconds: of denoising a clip, as generated.
        dense_step: seconds of a dense step in a short run.
        sigmas: noise level of each step of a clip.
        variants: by method and parameters.
        clips: mean seconds of the clips that settings took so far, by ``Candidate.key``.
    """

    dense_seconds: float
    dense_step: float
    sigmas: Sequence[float]
    variants: dict[str, StepTimes] = field(default_factory=dict)
    clips: dict[str, float] = field(default_factory=dict)
    _ratios: dict[str, list[float]] = field(default_factory=dict)

    def predict(self, candidate: Candidate) -> float | None:
        """Return the seconds of a clip, corrected by what the variant's clips took so far."""
        raw = self.predict_raw(candidate)
        ratios = self._ratios.get(variant_key(candidate.config))
        return None if raw is None else raw * (fmean(ratios) if ratios else 1.0)

    def predict_raw(self, candidate: Candidate) -> float | None:
        """Return the seconds of a clip as the short runs tell; None for unknown settings."""
        times = self.variants.get(variant_key(candidate.config))
        config = candidate.config
        if times is None or config.cache is not None or config.precision != "native":
            return None
        sparse = self.sparse_sigmas(config)
        dense = len(self.sigmas) - len(sparse)
        kinds = step_kinds(build_method(config.method, config.parameters), len(self.sigmas), dense)
        pairs = zip(step_densities(config, sparse), kinds, strict=True)
        steps = [times.step(density, kind) for density, kind in pairs]
        total = self.dense_step * dense + sum(steps)
        total += times.first_extra if sparse else 0.0
        return self.dense_seconds * total / (self.dense_step * len(self.sigmas))

    def expected(self, candidate: Candidate) -> float | None:
        """Return ``predict_raw``, or where it knows nothing what the settings' clips took."""
        raw = self.predict_raw(candidate)
        return self.clips.get(candidate.key) if raw is None else raw

    def density_for(
        self,
        variant: Variant,
        seconds: float,
        dense_above_sigma: float | None,
        *,
        least: float = 0.0,
    ) -> float:
        """Return the density at which a variant's clip is predicted to take so long.

        Args:
            variant: timed before.
            seconds: of a clip.
            dense_above_sigma: what stays dense.
            least: density that the variant is known to take here.

        Returns:
            A density among those the variant may take, in (0, 1).
        """
        low, high = max(least, variant.densities[-1]), max(least, variant.densities[0])
        for _ in range(20):
            middle = (low + high) / 2
            candidate = Candidate("", variant.config(middle, dense_above_sigma))
            slower = (self.predict_raw(candidate) or 0.0) >= seconds
            low, high = (low, middle) if slower else (middle, high)
        return round((low + high) / 2, 4)

    def learn(self, candidate: Candidate, seconds: float) -> None:
        """Take a measured time; later predictions for the variant are corrected by it."""
        self.clips[candidate.key] = seconds
        raw = self.predict_raw(candidate)
        if raw is not None:
            self._ratios.setdefault(variant_key(candidate.config), []).append(seconds / raw)

    def sparse_sigmas(self, config: SparseConfig) -> list[float]:
        """Return the noise levels of the steps that are sparse."""
        above = 2.0 if config.dense_above_sigma is None else config.dense_above_sigma
        return [sigma for sigma in self.sigmas if sigma <= above]


def step_densities(config: SparseConfig, sigmas: Sequence[float]) -> list[float]:
    """Return the mean density over layers at each noise level."""
    method, _ = config.build()
    if not isinstance(method, Banded):
        return [method.density for _ in sigmas]
    bands = method.bands
    return [next(b for b in bands if s > b.above_sigma or b is bands[-1]).mean() for s in sigmas]


def variant_key(config: SparseConfig) -> str:
    """Name what computes: a method and its parameters without the density, kernel, precision."""
    rest = {key: value for key, value in config.parameters.items() if key != "density"}
    return f"{config.method} {sorted(rest.items())} {config.impl} {config.precision}"


ShortRun = Callable[[SparseConfig, int], Sequence[float]]


def time_variant(variant: Variant, run: ShortRun, densities: tuple[float, float]) -> StepTimes:
    """Time a variant at a small and a large density.

    Less density cannot take longer: where it does by half, other work came between. Both are timed
    once more then, and the shorter times stand.

    Args:
        variant: what to time.
        densities: the two, both possible on this model.
        run: takes settings and a number of steps, and returns the seconds of each.
    """
    low, high = (_by_kind(variant, density, run) for density in densities)
    if any(low[1][kind] > _DISTURBED * high[1].get(kind, math.inf) for kind in low[1]):
        again = [_by_kind(variant, density, run) for density in densities]
        low, high = _shorter(low, again[0]), _shorter(high, again[1])
    extra = fmean((low[0], high[0]))
    return StepTimes(extra, ((densities[0], low[1]), (densities[1], high[1])))


def _shorter(
    one: tuple[float, dict[str, float]], other: tuple[float, dict[str, float]]
) -> tuple[float, dict[str, float]]:
    kinds = {kind: min(seconds, other[1][kind]) for kind, seconds in one[1].items()}
    return min(one[0], other[0]), kinds


def _by_kind(variant: Variant, density: float, run: ShortRun) -> tuple[float, dict[str, float]]:
    """Return what the first step takes more, and the seconds of a step by kind."""
    seconds = run(variant.config(density, None), SHORT_STEPS)
    kinds = step_kinds(variant.build(density), SHORT_STEPS, 0)
    found: dict[str, list[float]] = {}
    for kind, each in zip(kinds[1:], seconds[1:], strict=True):
        found.setdefault(kind, []).append(each)
    means = {kind: fmean(times) for kind, times in found.items()}
    if kinds[0] not in means:
        return 0.0, {**means, kinds[0]: seconds[0]}
    return max(0.0, seconds[0] - means[kinds[0]]), means


def step_kinds(method: SparseMethod, num_steps: int, first_step: int) -> list[str]:
    """Name the kind of each sparse step, from ``first_step`` on."""
    kinds = {
        step: phase.name for phase in method.phases(num_steps, first_step) for step in phase.steps
    }
    return [kinds.get(step, "") for step in range(first_step, num_steps)]
