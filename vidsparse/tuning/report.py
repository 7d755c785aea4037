"""What a search found: preset, validations, comparison at equal time, reasons."""

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.generate import Sampling
from vidsparse.preset_parts import ModelId
from vidsparse.profiling.environment import commit, device_name, package_version
from vidsparse.quality import bootstrap_mean
from vidsparse.tuning.candidates import dense_config, variants_of, warm_up_sigma
from vidsparse.tuning.search import Outcome
from vidsparse.tuning.target import Target
from vidsparse.tuning.tune import Search
from vidsparse.tuning.validate import (
    Validation,
    Validator,
    at_equal_time,
    choose,
    measured_preset,
)

# The schedule that ``enable`` uses when nothing is said.
DEFAULT_DENSE_STEPS = 0.2
_PACKAGES = ("vidsparse", "torch", "triton", "diffusers")


@dataclass(frozen=True)
class TuneReport:
    """The result of tuning.

    Attributes:
        preset: what to use; method "dense" where nothing faster reaches the target.
        target: what was asked for.
        validations: of the settings tried on held-out scenes, the last one is the preset's if
            there is one.
        defaults: every method's defaults at the preset's time, on the same scenes.
        outcomes: of all candidates generated.
        ranking: variants by output error.
        screening: variants by the room a clip leaves to the target, at equal predicted time.
        skipped: what was not tried, and why.
        floor_psnr: between dense clips that differ in rounding only, in dB.
        dense_seconds: of denoising a clip.
        generations: results this process made; the others were in the journal.
    """

    preset: SparseConfig
    target: Target
    validations: tuple[Validation, ...]
    defaults: tuple[Validation, ...]
    outcomes: tuple[Outcome, ...]
    ranking: tuple[tuple[str, float], ...]
    screening: tuple[tuple[str, float], ...]
    skipped: dict[str, str]
    floor_psnr: float | None
    dense_seconds: float
    generations: int

    @property
    def tuned(self) -> Validation | None:
        """The preset's validation; None for dense generation."""
        return self.validations[-1] if self.preset.method != "dense" or self.preset.cache else None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "target": str(self.target),
            "settings": self.preset.as_dict(),
            "held_out": [validation.as_dict() for validation in self.validations],
            "defaults_at_equal_time": [self._against(row) for row in self.defaults],
            "outcomes": [_outcome_row(outcome) for outcome in self.outcomes],
            "ranking": [list(row) for row in self.ranking],
            "screening": [list(row) for row in self.screening],
            "skipped": self.skipped,
            "floor_psnr": self.floor_psnr,
            "dense_seconds": self.dense_seconds,
            "generations": self.generations,
            "verdict": self.lines()[0],
        }

    def lines(self) -> list[str]:
        """Return the verdict and the table for people."""
        rows = [self._verdict()]
        if self.floor_psnr is not None:
            rows.append(f"floor: dense against dense {self.floor_psnr:.2f} dB")
        for row in self.defaults:
            against = self._against(row)["tuned_gain_db"]
            gain = "" if against is None else f"; tuned is {_interval(against)} dB better"
            rows.append(f"{row.candidate.label}: {row.scores} at {row.speedup:.2f}x{gain}")
        return rows

    def _verdict(self) -> str:
        tuned = self.tuned
        if tuned is not None:
            return (
                f"{self.preset.note} Held-out: {tuned.scores} at {tuned.speedup:.2f}x"
                + _predicted(tuned)
            )
        dense = f"nothing faster than dense generation reaches {self.target}: don't sparsify"
        if self.validations:
            best = _nearest_held_out(self.validations, self.target)
            return f"{dense}. The nearest, on held-out clips: {best.line()}"
        nearest = _nearest(self.outcomes, self.target, self.dense_seconds)
        if nearest is None or nearest.scores is None:
            return dense
        speed = self.dense_seconds / (nearest.seconds or self.dense_seconds)
        label = nearest.candidate.label
        why = f" (skipped {self.skipped[label]})" if label in self.skipped else ""
        return f"{dense}. The nearest is {label}: {nearest.scores} at {speed:.2f}x{why}"

    def _against(self, row: Validation) -> dict[str, Any]:
        """Return a row with the paired gain of the tuned preset over it."""
        tuned = self.tuned
        if tuned is None:
            return {**row.as_dict(), "tuned_gain_db": None}
        pairs = zip(tuned.per_clip, row.per_clip, strict=True)
        gain = bootstrap_mean([a.psnr - b.psnr for a, b in pairs])
        return {**row.as_dict(), "tuned_gain_db": gain.as_dict()}


def finish(
    search: Search,
    held_out: Sequence[Scene],
    model: ModelId,
    facts: Mapping[str, Any],
    *,
    defaults: bool = False,
    on_preset: Callable[[SparseConfig], None] = lambda preset: None,
) -> TuneReport:
    """Validate what a search found and make the preset.

    Args:
        search: finished.
        held_out: scenes it has not seen.
        model: fingerprint.
        facts: what was measured on, ``facts_of``.
        defaults: also run every method's defaults at the preset's time.
        on_preset: given the preset before the defaults are run, which takes long.

    Raises:
        UsageError: the search has not run.
    """
    target = search.settings.target
    validator = Validator(search.lab, search.journal, tuple(held_out), target, search.speed)
    validations = choose(search, validator)
    floor = validator.floor() if validations else None
    rounded = None if floor is None else round(floor, 2)
    facts = {**facts, "tokens": search.scout.tokens, "floor_psnr": rounded}
    if validations and validations[-1].meets:
        preset = measured_preset(validations[-1], model=model, facts=facts, target=target)
    else:
        note = f"Tuned for {target}: nothing faster than dense generation reaches it."
        preset = dense_config().model_copy(update={"note": note, "model": model})
    on_preset(preset)
    rows = _defaults(search, validator, validations) if defaults and validations else []
    return TuneReport(
        preset,
        target,
        tuple(validations),
        tuple(rows),
        tuple(search.outcomes),
        tuple(search.scout.ranking),
        tuple(search.scout.screening),
        search.skipped,
        floor,
        search.speed.dense_seconds,
        search.journal.made,
    )


def _defaults(
    search: Search, validator: Validator, validations: Sequence[Validation]
) -> list[Validation]:
    """Run each method's defaults at the density that takes the tuned preset's time."""
    scout, rows = search.scout, []
    sigma = warm_up_sigma(scout.sigmas, DEFAULT_DENSE_STEPS)
    for variant in variants_of(search.settings.methods):
        if variant.parameters:
            continue
        try:
            scout.time(variant)
            rows.append(at_equal_time(validator, variant, validations[-1], sigma))
        except UsageError as error:
            search.skipped[f"{variant.method} defaults"] = str(error)
            continue
        search.say(f"equal time: {rows[-1].line()}")
    return rows


def facts_of(pipe: Any, sampling: Sampling) -> dict[str, Any]:
    """Describe what is measured on: device, dtype, size, steps, versions, commit, date."""
    size = [sampling.width, sampling.height, sampling.num_frames]
    versions = {name: package_version(name) for name in _PACKAGES}
    return {
        "device": device_name(torch.device(pipe.device)),
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "size": None if None in size else size,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "versions": {name: found for name, found in versions.items() if found is not None},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    return {
        "label": outcome.candidate.label,
        "config": outcome.candidate.config.as_dict(),
        "reaches": outcome.reaches,
        "scores": None if outcome.scores is None else outcome.scores.as_dict(),
        "seconds": outcome.seconds,
        "clips": outcome.clips,
        "stopped": outcome.stopped,
    }


def _nearest(outcomes: Sequence[Outcome], target: Target, dense_seconds: float) -> Outcome | None:
    known = [outcome for outcome in outcomes if outcome.scores is not None]
    # Whoever wants speed has no use for what is slower than dense, however near.
    known = [o for o in known if (o.seconds or math.inf) < dense_seconds] or known
    room = lambda o: -math.inf if o.scores is None else target.slack(o.scores)  # noqa: E731
    return max(known, key=room, default=None)


def _nearest_held_out(rows: Sequence[Validation], target: Target) -> Validation:
    faster = [row for row in rows if row.speedup > 1] or rows
    return max(faster, key=lambda row: target.slack(row.scores))


def _predicted(validation: Validation) -> str:
    found = validation.predicted_speedup
    return "" if found is None else f" (predicted {found:.2f}x)"


def _interval(gain: dict[str, Any]) -> str:
    if gain["low"] is None:
        return f"{gain['mean']:.2f}"
    return f"{gain['mean']:.2f} [{gain['low']:.2f}, {gain['high']:.2f}]"
