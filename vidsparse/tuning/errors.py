"""Errors of sparse attention outputs, measured inside a dense generation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vidsparse.attention import run_plan
from vidsparse.errors import UsageError
from vidsparse.methods.base import SparseMethod
from vidsparse.plan import AttentionPlan
from vidsparse.profiling.dense_run import Look
from vidsparse.profiling.sites import Captured, settled_plan
from vidsparse.tuning.candidates import Variant


@dataclass(frozen=True)
class OutputError:
    """Error of one variant at one density in one call.

    Attributes:
        variant: its label.
        density: asked for.
        layer: of the call.
        step: of the call.
        sigma: noise level of the call.
        error: squared error of the output over its squared norm, all heads together.
    """

    variant: str
    density: float
    layer: int
    step: int
    sigma: float
    error: float


@dataclass
class PlanErrors:
    """Try variants on the calls shown; keeps one number per variant, density and call.

    Attributes:
        variants: what is tried.
        densities: at which densities.
        layers: which layers are looked at; None for all.
        spare: larger densities, tried in turn for those that a variant refuses.
        found: the numbers.
        skipped: variants that cannot run here, and why.
    """

    variants: Sequence[Variant]
    densities: Sequence[float]
    layers: int | None = None
    spare: Sequence[float] = ()
    found: list[OutputError] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def look(self, call: Look) -> None:
        """Measure all variants on one call."""
        if not self._wants(call.site.layer, call.site.num_layers):
            return
        for variant in self.variants:
            spare = iter(self.spare)
            for density in self.densities:
                if not self._measure(variant, density, call):
                    self._measure_spare(variant, spare, call)

    def _wants(self, layer: int, count: int) -> bool:
        if self.layers is None or self.layers >= count:
            return True
        # Evenly spread, away from the ends.
        return layer in {int((i + 0.5) * count / self.layers) for i in range(self.layers)}

    def _measure_spare(self, variant: Variant, spare: Iterator[float], call: Look) -> None:
        for density in spare:
            if self._measure(variant, density, call):
                return

    def _measure(self, variant: Variant, density: float, call: Look) -> bool:
        """Return whether the variant can run at this density."""
        try:
            method = variant.build(density)
            plan = _plan(method, call)
        except UsageError as refusal:
            self.skipped[f"{variant.label} at density {density:g}"] = str(refusal)
            return False
        error = 0.0
        if plan is not None and plan.dense_reason is None:
            out = run_plan(call.q, call.k, call.v, plan).out
            truth = call.out.float()
            error = float((out.float() - truth).square().sum() / truth.square().sum())
        site = call.site
        self.found.append(
            OutputError(variant.label, density, site.layer, site.step, site.sigma or 0.0, error)
        )
        return True


def _plan(method: SparseMethod, call: Look) -> AttentionPlan | None:
    tokens = Captured(call.q, call.k, call.v, call.layout, call.site)
    if method.init_state() is None:
        return method.decide(call.q, call.k, call.v, call.layout, call.site, None)
    return settled_plan(method, tokens)


def mean_errors(found: Sequence[OutputError]) -> dict[str, dict[float, float]]:
    """Return the mean error by variant and density, over the calls."""
    sums: dict[str, dict[float, list[float]]] = {}
    for each in found:
        sums.setdefault(each.variant, {}).setdefault(each.density, []).append(each.error)
    return {
        variant: {density: sum(values) / len(values) for density, values in by.items()}
        for variant, by in sums.items()
    }


def as_rows(found: Sequence[OutputError]) -> list[list[Any]]:
    """Return JSON rows; ``from_rows`` reads them."""
    return [[e.variant, e.density, e.layer, e.step, e.sigma, e.error] for e in found]


def from_rows(rows: Sequence[Sequence[Any]]) -> list[OutputError]:
    """Read rows of ``as_rows``."""
    return [OutputError(*row) for row in rows]
