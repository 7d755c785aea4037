"""Predict denoising times from a few timed steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from vidsparse.config import SparseConfig
from vidsparse.methods.banded import Banded
from vidsparse.tuning.candidates import Candidate, Variant

# Steps of a short run; the first one is set apart, since methods begin with more work.
SHORT_STEPS = 6


@dataclass(frozen=True)
class StepTimes:
    """What steps of a variant take, from short runs at two densities.

    Attributes:
        first_extra: seconds the first sparse step takes more than the others.
        at: density and seconds of a later step, two pairs.
    """

    first_extra: float
    at: tuple[tuple[float, float], tuple[float, float]]

    def step(self, density: float) -> float:
        """Return the seconds of a sparse step, linear in the density."""
        (d0, t0), (d1, t1) = self.at
        return t0 + (t1 - t0) * (density - d0) / (d1 - d0)


@dataclass
class SpeedModel:
    """Times of whole clips from times of steps.

    Attributes:
        dense_seconds: of denoising a clip, as generated.
        dense_step: seconds of a dense step in a short run.
        sigmas: noise level of each step of a clip.
        variants: by method and parameters.
    """

    dense_seconds: float
    dense_step: float
    sigmas: Sequence[float]
    variants: dict[str, StepTimes] = field(default_factory=dict)
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
        sparse = self.sparse_sigmas(candidate.config)
        steps = [times.step(density) for density in step_densities(candidate.config, sparse)]
        total = self.dense_step * (len(self.sigmas) - len(sparse)) + sum(steps)
        total += times.first_extra if sparse else 0.0
        return self.dense_seconds * total / (self.dense_step * len(self.sigmas))

    def density_for(
        self, variant: Variant, seconds: float, dense_above_sigma: float | None
    ) -> float:
        """Return the density at which a variant's clip is predicted to take so long.

        Args:
            variant: timed before.
            seconds: of a clip.
            dense_above_sigma: what stays dense.

        Returns:
            A density among those the variant may take, in (0, 1).
        """
        low, high = variant.densities[-1], variant.densities[0]
        for _ in range(20):
            middle = (low + high) / 2
            candidate = Candidate("", variant.config(middle, dense_above_sigma))
            slower = (self.predict_raw(candidate) or 0.0) >= seconds
            low, high = (low, middle) if slower else (middle, high)
        return round((low + high) / 2, 4)

    def learn(self, candidate: Candidate, seconds: float) -> None:
        """Take a measured time; later predictions for the variant are corrected by it."""
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
    """Name a method and its parameters without the density."""
    rest = {key: value for key, value in config.parameters.items() if key != "density"}
    return f"{config.method} {sorted(rest.items())}"


ShortRun = Callable[[SparseConfig, int], Sequence[float]]


def time_variant(variant: Variant, run: ShortRun, densities: tuple[float, float]) -> StepTimes:
    """Time a variant at a small and a large density.

    Args:
        variant: what to time.
        densities: the two, both possible on this model.
        run: takes settings and a number of steps, and returns the seconds of each.
    """
    runs = [run(variant.config(density, None), SHORT_STEPS) for density in densities]
    later = [median(seconds[1:]) for seconds in runs]
    extra = fmean(max(0.0, seconds[0] - step) for seconds, step in zip(runs, later, strict=True))
    return StepTimes(extra, ((densities[0], later[0]), (densities[1], later[1])))
