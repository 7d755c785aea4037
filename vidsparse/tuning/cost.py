"""Predict what a search costs before it begins."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vidsparse.clips import Scene
from vidsparse.tuning.candidates import variants_of
from vidsparse.tuning.scout import RANK_DENSITIES, RANK_LAYERS, RANK_STEPS
from vidsparse.tuning.settings import WARM_UPS, Lab
from vidsparse.tuning.speed import SHORT_STEPS

# Steps timed for the prediction.
_TIMED = 3


@dataclass(frozen=True)
class Cost:
    """What tuning takes.

    Attributes:
        dense_seconds: predicted denoising time of a dense clip.
        least: clips at least, in dense ones.
        most: clips at most, alike.
        calls_tried: sparse attention calls of the statistics.
    """

    dense_seconds: float
    least: float
    most: float
    calls_tried: int

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **asdict(self),
            "least_seconds": self.least * self.dense_seconds,
            "most_seconds": self.most * self.dense_seconds,
        }

    def __str__(self) -> str:
        """Return it for people."""
        low, high = (x * self.dense_seconds / 60 for x in (self.least, self.most))
        return (
            f"a dense clip denoises in about {self.dense_seconds:.1f} s; tuning generates as much "
            f"as {self.least:.0f} to {self.most:.0f} dense clips, {low:.1f} to {high:.1f} minutes, "
            f"and tries {self.calls_tried} sparse attention calls for its statistics; decoding "
            "and metrics come on top"
        )


def predict_cost(
    lab: Lab,
    tuning: Sequence[Scene],
    held_out: int,
    *,
    keep: int,
    caches: int,
    methods: Sequence[str] | None,
    steps: int,
) -> Cost:
    """Time a few dense steps, and count what a search may generate.

    Args:
        lab: times.
        tuning: scenes to tune on.
        held_out: scenes to validate on.
        keep: methods generated with.
        caches: step caches tried.
        methods: as in ``TuneSettings``.
        steps: of a clip.
    """
    step = min(lab.short(None, _TIMED, tuning[0])[1:])
    clips, variants = len(tuning), variants_of(methods)
    methods_left = len({variant.method for variant in variants})
    keep = min(keep, methods_left)
    rungs = max(len(variant.densities) for variant in variants)
    # Every method is timed at two densities and generates a clip; its defaults may too, and those
    # near the best generate all clips.
    scouting = methods_left * (2 * SHORT_STEPS / steps + 1)
    fixed = clips + 2 + scouting + 2 * held_out
    arms = keep * len(WARM_UPS)
    bisection = math.ceil(math.log2(rungs + 1))
    # At best every other arm is ruled out by the prediction, caches by one clip each.
    least = fixed + clips * bisection / 2 + caches
    # At worst every arm is bisected; a miss is mostly known after one clip.
    most = (
        fixed
        + scouting * (2 * clips - 1)
        + 2
        + clips * (arms + 2 * caches + 2) * bisection / 2
        + 2 * held_out
    )
    calls = len(variants) * len(RANK_DENSITIES) * RANK_LAYERS * len(RANK_STEPS)
    return Cost(step * steps, least, most, calls)
