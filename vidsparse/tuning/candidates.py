"""Settings to try: arms, each a ladder from the most work to the least."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidsparse.config import SparseConfig
from vidsparse.methods.base import SparseMethod, available_methods, build_method
from vidsparse.pipelines.step_cache import KINDS
from vidsparse.preset_parts import StepCache

# The source of methods that know more than they could in time, or nothing.
CONTROL = "control"
# Densities tried besides those of a method's search space, where it stops early.
_MORE_DENSITIES = (0.6, 0.7)


@dataclass(frozen=True)
class Candidate:
    """Settings that can be measured.

    Attributes:
        label: for people.
        config: the settings; a preset without evidence.
    """

    label: str
    config: SparseConfig

    @property
    def key(self) -> str:
        """Name the settings in the journal; labels and notes do not matter."""
        values = {k: v for k, v in self.config.as_dict().items() if k not in ("note", "status")}
        return json.dumps(values, sort_keys=True)

    @property
    def density(self) -> float:
        """Density asked for; the mean over bands and layers where there are bands."""
        method, _ = self.config.build()
        return method.density


@dataclass(frozen=True)
class Arm:
    """Settings along one line, from the most work to the least.

    Attributes:
        label: for people.
        ladder: the settings; quality falls and speed rises along it.
    """

    label: str
    ladder: tuple[Candidate, ...]


@dataclass(frozen=True)
class Variant:
    """A method with all parameters but the density.

    Attributes:
        method: its name.
        parameters: fields that differ from its defaults, without the density.
        densities: what may be tried, from the largest to the least.
    """

    method: str
    parameters: Mapping[str, Any]
    densities: tuple[float, ...]

    @property
    def label(self) -> str:
        """Name it for people, in the form of ``--method``."""
        parts = [f"{key}={_text(value)}" for key, value in self.parameters.items()]
        return ":".join([self.method, *parts])

    def build(self, density: float) -> SparseMethod:
        """Make the method."""
        return build_method(self.method, {**self.parameters, "density": density})

    def config(self, density: float, dense_above_sigma: float | None) -> SparseConfig:
        """Make the settings, with what stays dense given by the noise level."""
        return SparseConfig(
            method=self.method,
            parameters={**self.parameters, "density": density},
            dense_steps=0,
            dense_above_sigma=dense_above_sigma,
        )

    def arm(self, warm_up: float, dense_above_sigma: float | None) -> Arm:
        """Return the arm of all densities after a warm-up.

        Args:
            warm_up: share of steps that stay dense, for the label.
            dense_above_sigma: the same as a noise level.
        """
        name = f"{self.label}, {warm_up:.0%} dense steps"
        made = [(d, self.config(d, dense_above_sigma)) for d in self.densities]
        return Arm(name, tuple(Candidate(f"{name}, density {d:g}", config) for d, config in made))


def variants_of(names: Sequence[str] | None = None) -> list[Variant]:
    """Return each method's defaults, and one change of each parameter of its search space.

    Args:
        names: methods; None takes all that are no controls.

    Raises:
        UsageError: a name is unknown.
    """
    chosen = [name for name, cls in available_methods().items() if cls.source != CONTROL]
    found: list[Variant] = []
    for name in chosen if names is None else names:
        method = build_method(name, {})
        space = method.search_space()
        densities = _densities(space["density"].values if "density" in space else (0.2, 0.3, 0.5))
        found.append(Variant(name, {}, densities))
        for field, choices in space.items():
            if field == "density":
                continue
            default = getattr(method, field)
            found += [
                Variant(name, {field: value}, densities)
                for value in choices.values
                if value != default and value is not None
            ]
    return found


def cache_arms(
    configs: Mapping[str, SparseConfig], kinds: Sequence[str] = tuple(KINDS)
) -> list[Arm]:
    """Return arms of step caches on top of settings.

    Args:
        configs: settings by label; dense ones make arms of a cache alone.
        kinds: names of caches.
    """
    return [
        Arm(f"{kind} on {label}", tuple(_cached(kind, step, label, config) for step in steps))
        for label, config in configs.items()
        for kind in kinds
        for steps in (KINDS[kind].ladder,)
    ]


def _cached(kind: str, step: Mapping[str, Any], label: str, config: SparseConfig) -> Candidate:
    cache = StepCache(name=kind, parameters=dict(step))
    name = f"{kind} {_text(next(iter(step.values())))} on {label}"
    return Candidate(name, config.model_copy(update={"cache": cache}))


def dense_config() -> SparseConfig:
    """Return settings that change nothing."""
    return SparseConfig(method="dense", dense_steps=0)


def warm_up_sigma(sigmas: Sequence[float], share: float) -> float | None:
    """Return the noise level above which a share of the steps lies; None for no step.

    Args:
        sigmas: noise level of each step, falling.
        share: of the steps, in [0, 1].
    """
    count = round(share * len(sigmas))
    if count == 0:
        return None
    below = sigmas[count] if count < len(sigmas) else 0.0
    # Nearer to the first sparse step: with more steps, those in between are mostly dense ones.
    return round(below + (sigmas[count - 1] - below) / 4, 4)


def _densities(values: Sequence[Any]) -> tuple[float, ...]:
    known = sorted({float(value) for value in values}, reverse=True)
    more = [value for value in _MORE_DENSITIES if value > known[0]]
    return (*sorted(more, reverse=True), *known)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, list, tuple)) else str(value)
