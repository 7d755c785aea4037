"""Means over clips with bootstrap confidence intervals, paired and grouped by prompt."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean over clips and how sure it is.

    Attributes:
        mean: over clips.
        spread: standard deviation over clips (n - 1); None for one clip.
        low: lower end of the confidence interval of the mean; None for one clip.
        high: upper end, alike.
        count: clips.
    """

    mean: float
    spread: float | None
    low: float | None
    high: float | None
    count: int

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def bootstrap_mean(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a mean with its percentile bootstrap interval.

    Clips of one prompt are more alike than others, so whole prompts are drawn with replacement
    first, and then clips within each. With one group this is the ordinary bootstrap over clips.

    Args:
        values: one finite number per clip; differences to another contender's for paired tests.
        groups: each clip's prompt; None makes all clips one group.
        confidence: in (0, 1).
        resamples: draws.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: there are no values, some are not finite, or groups differ in number.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"an interval needs finite values, at least one; got {values!r}")
    labels = [0] * len(values) if groups is None else list(groups)
    if len(labels) != len(values):
        raise ValueError(f"got {len(values)} values but {len(labels)} groups; give one for each")
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, None, None, None, 1)
    parts = [data[[label == one for label in labels]] for one in dict.fromkeys(labels)]
    means = _resampled_means(parts, resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(data.std(ddof=1)), float(low), float(high), data.size)


def _resampled_means(
    parts: list[np.ndarray], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return (resamples,) means of redrawn clips of redrawn groups."""
    chosen = rng.integers(len(parts), size=(resamples, len(parts)))
    total, count = np.zeros(resamples), np.zeros(resamples)
    for slot in range(len(parts)):
        for index, part in enumerate(parts):
            mine = np.flatnonzero(chosen[:, slot] == index)
            drawn = part[rng.integers(part.size, size=(mine.size, part.size))]
            total[mine] += drawn.sum(1)
            count[mine] += part.size
    return np.asarray(total / count)
