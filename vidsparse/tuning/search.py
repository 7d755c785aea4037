"""Find the fastest settings that reach a target, with as few generations as possible."""

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


@dataclass
class Best:
    """The fastest outcome so far that reaches the target, and the time to beat.

    Attributes:
        seconds: denoising time of a clip.
        outcome: None while that is dense generation.
    """

    seconds: float
    outcome: Outcome | None = None

    def offer(self, outcome: Outcome) -> None:
        """Take an outcome if it reaches the target faster."""
        if outcome.reaches and outcome.seconds is not None and outcome.seconds < self.seconds:
            self.seconds, self.outcome = outcome.seconds, outcome

    @property
    def worthwhile(self) -> float:
        """Seconds a candidate must stay under."""
        return self.seconds * (1 - WORTHWHILE)


def search_arm(arm: Arm, best: Best, probe: Probe, predict: Predict) -> None:
    """Look along an arm for settings that reach the target and beat the best time.

    Quality falls along the arm. So the first candidate that could win is tried first: if it
    misses the target all behind it do, and one generation ends the arm. Else bisect.

    Args:
        arm: settings from the most work to the least.
        best: updated.
        probe: generates; costs time.
        predict: costs nothing.
    """
    low = _first_worthwhile(arm, best, predict)
    high = len(arm.ladder)
    if low == high:
        return
    # Invariant: everything before ``low`` is too slow or reaches the target, from ``high`` on
    # nothing does.
    middle = low if best.outcome is not None else (low + high) // 2
    while low < high:
        outcome = probe(arm.ladder[middle])
        best.offer(outcome)
        if outcome.reaches:
            low = middle + 1
        else:
            high = middle
        middle = (low + high) // 2


def _first_worthwhile(arm: Arm, best: Best, predict: Predict) -> int:
    for index, candidate in enumerate(arm.ladder):
        seconds = predict(candidate)
        if seconds is None or seconds < best.worthwhile:
            return index
    return len(arm.ladder)
