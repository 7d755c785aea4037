"""Find the fastest settings that reach a target, with as few generations as possible."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vidsparse.tuning.candidates import Arm, Candidate
from vidsparse.tuning.target import Scores

# A candidate must be this much faster than the best one to be worth a generation.
WORTHWHILE = 0.02


@dataclass(frozen=True)
class Outcome:
    """What generating with a candidate gave.

    Attributes:
        candidate: the settings.
        reaches: whether the target is met.
        scores: means over the clips generated; None when every one was stopped early.
        seconds: mean denoising time of a clip; None when every one was stopped early.
        clips: generated in full.
        stopped: why it was given up before all clips were whole; None otherwise.
    """

    candidate: Candidate
    reaches: bool
    scores: Scores | None
    seconds: float | None
    clips: int
    stopped: str | None = None


Probe = Callable[[Candidate], Outcome]
# Predicted denoising seconds; None where nothing is known.
Predict = Callable[[Candidate], float | None]


def time_of(outcome: Outcome, predict: Predict) -> float:
    """Return the seconds of a clip to compare settings by.

    They are predicted where they can be: predictions are corrected by all clips of a method, while
    one lucky time of two clips would end the search.
    """
    known = predict(outcome.candidate)
    if known is not None:
        return known
    return math.inf if outcome.seconds is None else outcome.seconds


def _unknown(candidate: Candidate) -> float | None:
    return None


@dataclass
class Best:
    """The fastest settings so far that reach the target, and the time to beat.

    Attributes:
        dense_seconds: denoising time of a dense clip, to beat at first.
        predict: seconds of a clip by all that was timed; None where nothing is known.
        outcome: None while dense generation is the best.
    """

    dense_seconds: float
    predict: Predict = _unknown
    outcome: Outcome | None = None

    @property
    def seconds(self) -> float:
        """Denoising time of a clip with the best settings."""
        return self.dense_seconds if self.outcome is None else time_of(self.outcome, self.predict)

    def offer(self, outcome: Outcome) -> None:
        """Take an outcome if it reaches the target faster."""
        if outcome.reaches and time_of(outcome, self.predict) < self.seconds:
            self.outcome = outcome

    @property
    def worthwhile(self) -> float:
        """Seconds a candidate must stay under."""
        return self.seconds * (1 - WORTHWHILE)


def search_arm(
    arm: Arm, best: Best, probe: Probe, *, late: Callable[[Candidate], bool] = lambda each: False
) -> None:
    """Look along an arm for settings that reach the target and beat the best time.

    Quality falls along the arm. So the first candidate that could win is tried first: if it
    misses the target all behind it do, and one generation ends the arm. Else bisect.

    Args:
        arm: settings from the most work to the least.
        best: updated.
        probe: generates; costs time.
        late: asked before each candidate whether to leave it and all others out.
    """
    low = _first_worthwhile(arm, best)
    high = len(arm.ladder)
    if low == high:
        return
    # Invariant: everything before ``low`` is too slow or reaches the target, from ``high`` on
    # nothing does.
    middle = low if best.outcome is not None else (low + high) // 2
    while low < high and not late(arm.ladder[middle]):
        outcome = probe(arm.ladder[middle])
        best.offer(outcome)
        if outcome.reaches:
            low = middle + 1
        else:
            high = middle
        middle = (low + high) // 2


def _first_worthwhile(arm: Arm, best: Best) -> int:
    for index, candidate in enumerate(arm.ladder):
        seconds = best.predict(candidate)
        if seconds is None or seconds < best.worthwhile:
            return index
    return len(arm.ladder)
