"""When a mask that serves many steps is searched for."""

import logging
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from vidsparse.errors import UsageError
from vidsparse.plan import CallSite

Point = float | int

_LOG = logging.getLogger(__name__)
# Steps per search below which searching eats what the sparse steps gain.
_FEW_STEPS_PER_SEARCH = 8


@dataclass(frozen=True)
class SearchSchedule:
    """The points of a run at which a search falls due.

    A search is due at the first call at or after a point, so that a step which a step cache leaves
    out delays it and never drops it. Nothing counts calls. Points that lie before a run's first
    sparse step fall together there.

    Attributes:
        points: ascending steps, as shares of the run (floats in [0, 1)) or counted from 0 (ints).
        sigmas: descending noise levels in [0, 1] instead: a search is due at the first step whose
            level is at or below one. Both must not be given.

    Raises:
        UsageError: a point is out of range, out of order or of another kind than the others.
    """

    points: tuple[Point, ...] = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.points and self.sigmas:
            raise UsageError(
                f"search_at={self.points} and search_sigmas={self.sigmas} exclude each other; "
                "give one of the two"
            )
        _check_points(self.points)
        if any(not 0 <= level <= 1 for level in self.sigmas):
            raise UsageError(f"search_sigmas={self.sigmas} must lie in [0, 1]")
        if any(a <= b for a, b in pairwise(self.sigmas)):
            raise UsageError(f"search_sigmas={self.sigmas} must descend, as noise does in a run")

    @property
    def needs_num_steps(self) -> bool:
        """Whether points are shares of a run."""
        return any(isinstance(point, float) for point in self.points)

    @property
    def count(self) -> int:
        """How many points there are."""
        return len(self.points) + len(self.sigmas)

    def passed(self, site: CallSite) -> int:
        """Return how many points lie at or before a call.

        Raises:
            UsageError: the call does not tell its noise level or number of steps and the schedule
                needs it, or a point lies beyond the run.
        """
        if self.sigmas:
            if site.sigma is None:
                raise UsageError(
                    f"search_sigmas={self.sigmas} need the noise level, which {site} does not "
                    "tell; use search_at with steps"
                )
            return sum(site.sigma <= level for level in self.sigmas)
        return sum(step <= site.step for step in self.steps(site.num_steps))

    def steps(self, num_steps: int | None) -> tuple[int, ...]:
        """Return the step of each point; in short runs some may coincide.

        Args:
            num_steps: steps of the run; None where nobody knows.

        Raises:
            UsageError: ``num_steps`` is needed, or a point lies beyond it.
        """
        if num_steps is None:
            if self.needs_num_steps:
                raise UsageError(
                    f"search_at={self.points} are shares of a run, but a bare transformer does "
                    "not tell how many steps there are; give num_steps= to handle.generation(), "
                    "or whole steps"
                )
            return tuple(int(point) for point in self.points)
        late = [point for point in self.points if isinstance(point, int) and point >= num_steps]
        if late:
            raise UsageError(
                f"search_at={self.points} lies outside a run of {num_steps} steps; use steps in "
                f"0..{num_steps - 1}, or shares such as 0.2"
            )
        return tuple(_step(point, num_steps) for point in self.points)

    def tell_if_few_steps(self, method: str, site: CallSite) -> None:
        """Warn once when a first search begins a run too short to repay its searches.

        Args:
            method: its name.
            site: the call that searches first.
        """
        if site.num_steps is None:
            return
        searches = 1 + sum(due > site.step for due in self.steps(site.num_steps))
        if site.num_steps < searches * _FEW_STEPS_PER_SEARCH:
            _warn_of_few_steps(method, site.num_steps, searches, site.step)


@cache
def _warn_of_few_steps(method: str, num_steps: int, searches: int, step: int) -> None:
    _LOG.warning(
        "%s searches %d time(s) in a run of %d steps, first at its first sparse step %d, "
        "dense then; runs this short gain little, DraftAttention needs no search",
        method,
        searches,
        num_steps,
        step,
    )


def _check_points(points: tuple[Point, ...]) -> None:
    if len({isinstance(point, float) for point in points}) > 1:
        raise UsageError(f"search_at={points} mixes shares and whole steps; use one kind")
    if any(point < 0 or (isinstance(point, float) and point >= 1) for point in points):
        raise UsageError(
            f"search_at={points} must be shares of the run in [0, 1) or whole steps of at least 0"
        )
    if any(a >= b for a, b in pairwise(points)):
        raise UsageError(f"search_at={points} must ascend")


def _step(point: Point, num_steps: int) -> int:
    # 0.58 * 50 is 28.999...: compare in 1e-9, as the schedule of dense steps does.
    return point if isinstance(point, int) else int(point * num_steps + 1e-9)
