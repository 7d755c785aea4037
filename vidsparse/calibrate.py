"""Find LiteAttention's thresholds for a model: by layer and part of the steps, against dense."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

from vidsparse.api import enabled
from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.fingerprint import model_of
from vidsparse.generate import Sampling, sample
from vidsparse.lite_probe import LiteProbe, Place
from vidsparse.methods.lite import Lite
from vidsparse.methods.lite_thresholds import (
    KEEP_ALL,
    Criterion,
    ThresholdTable,
    check_threshold,
)

# Called after each step with what is generated, the number of steps done and of all steps.
OnProgress = Callable[[str, int, int], None]

# Tried when none are given, from the least that is skipped to the most.
CANDIDATES: dict[Criterion, tuple[float, ...]] = {
    "running_mass": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8),
    "previous_mass": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8),
    "running_max": (-16.0, -12.0, -10.0, -8.0, -6.0, -5.0, -4.0, -3.0, -2.0),
}


@dataclass(frozen=True)
class Choice:
    """What was chosen at one place, and what it cost there.

    Attributes:
        transformer: attribute name in the pipeline.
        layer: from 0.
        segment: part of the steps, from 0.
        threshold: the largest candidate within the target; one that drops nothing where none is.
        error: mean relative L1 error of the attention output against the dense one.
        density: mean kept share of query-key pairs, in (0, 1].
    """

    transformer: str
    layer: int
    segment: int
    threshold: float
    error: float
    density: float


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and what they were chosen by.

    Attributes:
        table: for ``Lite.thresholds``.
        choices: one entry per transformer, layer and segment with sparse steps.
        target_error: what was aimed at.
    """

    table: ThresholdTable
    choices: tuple[Choice, ...]
    target_error: float

    def density(self) -> float:
        """Return the mean kept share where something was skipped; 1 where nothing was.

        It is over layers and segments.
        """
        return fmean([c.density for c in self.choices if c.density < 1] or [1.0])

    def preset(self, pipe: Any, lite: Lite, dense_steps: float | int) -> SparseConfig:
        """Make the settings that use the thresholds, for this model only.

        Args:
            pipe: the pipeline that they were found on.
            lite: the method that was calibrated.
            dense_steps: share or count of steps that were left dense.
        """
        # Whatever the thresholds were found with; the density has no effect beside them.
        given = {f.name: getattr(lite, f.name) for f in fields(lite) if f.name != "density"}
        parameters: dict[str, Any] = {
            key: value for key, value in given.items() if value != getattr(Lite, key)
        }
        parameters |= {"criterion": lite.criterion, "thresholds": self.table.as_values()}
        return SparseConfig(
            method="lite",
            parameters=parameters,
            dense_steps=dense_steps,
            model=model_of(pipe),
            note=(
                f"thresholds calibrated to a relative L1 error of {self.target_error} of each "
                f"attention output against dense; kept on average {self.density():.3f} where it "
                "skipped"
            ),
        )


def calibrate(
    pipe: Any,
    scenes: Sequence[Scene],
    sampling: Sampling,
    *,
    lite: Lite | None = None,
    target_error: float = 0.05,
    segments: int = 3,
    candidates: Sequence[float] | None = None,
    dense_steps: float | int = 0.2,
    on_progress: OnProgress | None = None,
) -> Calibration:
    """Choose the largest threshold per layer and segment that stays within an error.

    All scenes are generated densely, once per segment. Beside each dense call, every candidate
    attends with the tiles that it would have kept, and is compared with the dense output. A
    segment starts from the tiles that the choices before it left over, and as these never return,
    a candidate must stay within the error in all later segments too.

    Args:
        pipe: a diffusers text-to-video pipeline.
        scenes: prompts and seeds, at least one.
        sampling: size, frames and steps of the clips.
        lite: criterion, order, blocks and seed to calibrate; without thresholds.
        target_error: relative L1 error of an attention output, in (0, 1).
        segments: equal parts of the steps with thresholds of their own, at least 1.
        candidates: thresholds to try, from the least that is skipped to the most; None: a ladder.
        dense_steps: share or count of the first steps that stay dense.
        on_progress: called after each step.

    Raises:
        UsageError: there is no scene, a number is out of range, or no step is sparse.
        UnsupportedPipelineError: no model family knows the pipeline.
    """
    lite = Lite() if lite is None else lite
    tried = tuple(CANDIDATES[lite.criterion] if candidates is None else candidates)
    check_aims(lite, target_error, segments)
    _check(scenes, lite, tried)
    ladder = (KEEP_ALL[lite.criterion], *tried)
    probe = LiteProbe(0.5, lite=lite, candidates=ladder, segments=segments, segment=0)
    choices: list[Choice] = []
    for segment in range(segments):
        probe = replace(probe, segment=segment, trials={})
        with enabled(pipe, probe, dense_steps=dense_steps):
            for number, scene in enumerate(scenes):
                name = f"part {segment + 1} of {segments}, clip {number + 1} of {len(scenes)}"
                sample(
                    pipe, scene.prompt, sampling, seed=scene.seed, on_step=_tell(on_progress, name)
                )
        found = _choices(probe, target_error)
        choices += found
        probe.settled.update({(c.transformer, c.layer, c.segment): c.threshold for c in found})
    return Calibration(probe.table(target_error), tuple(choices), target_error)


def _check(
    scenes: Sequence[Scene],
    lite: Lite,
    candidates: tuple[float, ...],
) -> None:
    if not scenes:
        raise UsageError("there is no prompt to calibrate on; give at least one")
    for value in candidates:
        check_threshold(value, lite.criterion, where="candidate")
    if not candidates or list(candidates) != sorted(set(candidates)):
        raise UsageError(f"candidates={candidates} must ascend, from the least that is skipped")


def check_aims(lite: Lite, target_error: float, segments: int) -> None:
    """Refuse what can be refused without a pipeline; arguments as ``calibrate`` takes them.

    Raises:
        UsageError: a number is out of range, or the method has thresholds already.
    """
    if not 0 < target_error < 1:
        raise UsageError(f"target_error={target_error} must lie in (0, 1)")
    if segments < 1:
        raise UsageError(f"segments={segments} must be at least 1")
    if lite.instead_of_density() is not None:
        raise UsageError(f"the method has {lite.instead_of_density()} already; give it none")


def _choices(probe: LiteProbe, target_error: float) -> list[Choice]:
    """Choose for every layer that had calls in the segment that was tried."""
    own = [place for place in probe.trials if place[2] == probe.segment]
    return [_choose(place, probe, target_error) for place in own]


def _choose(place: Place, probe: LiteProbe, target_error: float) -> Choice:
    """Take the last candidate before the first that errs too much, now or later."""
    transformer, layer, _ = place
    later = [(transformer, layer, s) for s in range(probe.segment, probe.segments)]
    found = [probe.trials[at] for at in later if at in probe.trials]
    chosen = 0
    for candidate in range(1, len(probe.candidates)):
        if max(trials[candidate].means()[0] for trials in found) > target_error:
            break
        chosen = candidate
    error, density = probe.trials[place][chosen].means()
    return Choice(*place, probe.candidates[chosen], error, density)


def _tell(on_progress: OnProgress | None, name: str) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    return lambda done, total: on_progress(name, done, total)
