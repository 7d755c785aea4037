"""Another method whose density depends on the noise level and the layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.block_sparse_attention import AttentionOutput
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod, check_given
from vidsparse.methods.wrapped import WrappedMethod
from vidsparse.plan import AttentionPlan, CallSite


class DensityBand(Protocol):
    """Densities of the noise levels above a bound; ``vidsparse.preset_parts.Band`` is one."""

    @property
    def above_sigma(self) -> float:
        """Lower bound of the noise level, in [0, 1]."""

    @property
    def layers(self) -> list[float] | None:
        """One density per layer; None where all have the same."""

    def of_layer(self, layer: int) -> float:
        """Return the density of a layer, in (0, 1]; 1 is dense."""

    def mean(self) -> float:
        """Return the mean density over the layers."""


@dataclass(frozen=True)
class Banded(WrappedMethod):
    """Plan with another method, at the density of the call's noise level and layer.

    Noise levels, not steps, so that one table serves any number of steps.

    Attributes:
        density: mean over bands and layers; what counts is in ``bands``.
        inner: what plans.
        bands: by noise level, from high to low; the last one reaches down to 0.

    Raises:
        UsageError: bands are missing, out of order, or the method would ignore them.
    """

    name: ClassVar[str] = "banded"
    summary: ClassVar[str] = "another method, with densities by noise level and layer"
    source: ClassVar[str] = "control"

    bands: tuple[DensityBand, ...] = field(kw_only=True, compare=False)
    _variants: dict[tuple[float, bool], SparseMethod] = field(
        default_factory=dict, kw_only=True, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = [band.above_sigma for band in self.bands]
        if not bounds or bounds[-1] != 0 or sorted(set(bounds), reverse=True) != bounds:
            raise UsageError(
                f"bands with above_sigma={bounds} must go from high to low noise and end at 0"
            )
        check_given(self.inner, ("density",))
        # Summaries and messages name the method that plans.
        object.__setattr__(self, "name", f"{self.inner.name} in bands")

    @classmethod
    def of(cls, inner: SparseMethod, bands: Sequence[DensityBand]) -> "Banded":
        """Join a method with bands.

        Raises:
            UsageError: see the class.
        """
        mean = sum(band.mean() for band in bands) / max(1, len(bands))
        # A mean of 1 would count as dense before any call is asked.
        return cls(min(mean, 0.999) or 0.5, inner=inner, bands=tuple(bands))

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Plan as the other method does, at this call's density; None where it is 1."""
        variant = self.variant(site)
        return None if variant is None else variant.decide(q, k, v, layout, site, state)

    def observe(
        self, output: AttentionOutput, plan: AttentionPlan, site: CallSite, state: Any
    ) -> None:
        """Let the other method learn."""
        variant = self.variant(site)
        if variant is not None:
            variant.observe(output, plan, site, state)

    def compare(
        self, exact: Tensor, out: Tensor, plan: AttentionPlan, site: CallSite, state: Any
    ) -> None:
        """Let the other method learn from a dense output beside its own."""
        variant = self.variant(site)
        if variant is not None:
            variant.compare(exact, out, plan, site, state)

    def variant(self, site: CallSite) -> SparseMethod | None:
        """Return the method at the density of a call; None where that is 1.

        Raises:
            UsageError: the noise level is unknown, or the bands are for another number of layers.
        """
        band = self._band_at(site)
        density, of_layer = band.of_layer(site.layer), band.layers is not None
        if density >= 1:
            return None
        key = density, of_layer
        if key not in self._variants:
            self._variants[key] = self.inner.at_density(density, of_layer=of_layer)
        return self._variants[key]

    def density_at(self, site: CallSite) -> float:
        """Return the density of a call, in (0, 1]."""
        return self._band_at(site).of_layer(site.layer)

    def _band_at(self, site: CallSite) -> DensityBand:
        if site.sigma is None:
            raise UsageError(
                "a preset with bands needs noise levels, but the transformer was called without "
                "timestep"
            )
        for band in self.bands:
            if site.sigma > band.above_sigma or band is self.bands[-1]:
                if band.layers is not None and len(band.layers) != site.num_layers:
                    raise UsageError(
                        f"the preset has densities for {len(band.layers)} layers, but "
                        f"{site.transformer} has {site.num_layers}; use the preset of this model"
                    )
                return band
        raise AssertionError("the last band holds for every noise level")
