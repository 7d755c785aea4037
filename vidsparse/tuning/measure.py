"""Measure finished settings at another size or number of steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.tuning.candidates import Candidate
from vidsparse.tuning.journal import Journal
from vidsparse.tuning.settings import Lab
from vidsparse.tuning.speed import SpeedModel
from vidsparse.tuning.target import Target
from vidsparse.tuning.validate import Validation, Validator

# Met by every clip: for presets that were made without a target.
_NO_TARGET = Target(min_psnr=1e-6)


@dataclass(frozen=True)
class PresetMeasurement:
    """A preset on some clips.

    Attributes:
        validation: what was measured.
        target: what the preset was tuned for; None where it does not say.
    """

    validation: Validation
    target: Target | None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values; "reaches" and "meets" are null without a target."""
        found = self.validation.as_dict()
        if self.target is None:
            return {**found, "target": None, "reaches": None, "meets": None}
        return {**found, "target": self.target.as_dict()}

    def line(self) -> str:
        """Return the result for people."""
        found = self.validation
        low, high = found.psnr.low, found.psnr.high
        bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        verdict = ""
        if self.target is not None:
            verdict = f"; {found.verdict} {self.target}"
        return (
            f"{found.candidate.label}: {found.scores}{bounds} at {found.speedup:.2f}x over "
            f"{found.psnr.count} clips{verdict}"
        )


def measure_preset(
    lab: Lab, config: SparseConfig, scenes: Sequence[Scene], *, label: str
) -> PresetMeasurement:
    """Generate scenes densely and with a preset.

    Args:
        lab: generates.
        config: the preset, without the model it is for.
        scenes: prompts and seeds.
        label: how lines name it.
    """
    bounds = {} if config.measured is None else config.measured.target
    target = Target(**bounds) if bounds else None
    # Without timed variants the model predicts nothing, which is all that is asked here.
    unknown = SpeedModel(dense_seconds=1.0, dense_step=1.0, sigmas=())
    journal = Journal(None, {})
    validator = Validator(lab, journal, tuple(scenes), target or _NO_TARGET, unknown)
    return PresetMeasurement(validator.of(Candidate(label, config)), target)
