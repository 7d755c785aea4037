"""Means and ratios over clips with confidence intervals, paired and grouped by prompt.

The intervals are percentile bootstrap ones. Of few prompts these are too narrow: at 95 % they hold
the mean of normal values 50 % of the time for two and 88 % for eight. Below ``FEW`` prompts they
are widened to Student's t interval, which holds it as often as it says.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
# Groups, or clips of one group, from which on bootstrap stands alone.
FEW = 10


# Takes a value and half of its interval; returns both ends.
Around = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Interval:
    """A mean over clips and how sure it is.

    Attributes:
        mean: over clips; of a ratio, that of the sums.
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
    """Return a mean with its confidence interval.

    Clips of one prompt are more alike than others, so whole prompts are drawn with replacement
    first, and then clips within each. With one group this is the ordinary bootstrap over clips.
    Below ``FEW`` groups, or clips of one group, the wider of this and Student's t stands.

    Args:
        values: one finite number per clip; differences to another contender's for paired tests.
        groups: each clip's prompt; None makes all clips one group.
        confidence: in (0, 1).
        resamples: draws.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: there are no values, some are not finite, or groups differ in number.
    """
    pairs = np.stack([_finite(values), np.ones(len(values))], axis=1)
    return _interval(pairs, _labels(groups, len(values)), _around, confidence, resamples, seed)


def bootstrap_ratio(
    above: Sequence[float],
    below: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the ratio of two sums over clips with its confidence interval.

    Pairs are drawn together, grouped as in ``bootstrap_mean``; ``mean`` is the ratio of the sums
    and ``spread`` that of the clips' own ratios. Student's t is that of the ratio's
    logarithm (delta method), so that both ends are above 0 where the ratio is.

    Args:
        above: one finite number per clip, such as the seconds of dense.
        below: alike, above 0.
        groups: each clip's prompt; None makes all clips one group.
        confidence: in (0, 1).
        resamples: draws.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: as ``bootstrap_mean``, or there are not as many of both.
    """
    if len(above) != len(below):
        raise ValueError(f"got {len(above)} values over {len(below)}; give pairs")
    pairs = np.stack([_finite(above), _finite(below)], axis=1)
    return _interval(pairs, _labels(groups, len(above)), _around_ratio, confidence, resamples, seed)


def _finite(values: Sequence[float]) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"an interval needs finite values, at least one; got {values!r}")
    return data


def _labels(groups: Sequence[Hashable] | None, count: int) -> list[Hashable]:
    labels: list[Hashable] = [0] * count if groups is None else list(groups)
    if len(labels) != count:
        raise ValueError(f"got {count} values but {len(labels)} groups; give one for each")
    return labels


def _interval(
    pairs: np.ndarray,
    labels: list[Hashable],
    around: Around,
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Return the ratio of the sums of (N, 2) pairs with its interval."""
    total = pairs.sum(0)
    ratio, each = float(total[0] / total[1]), pairs[:, 0] / pairs[:, 1]
    if len(pairs) == 1:
        return Interval(ratio, None, None, None, 1)
    parts = [pairs[[label == one for label in labels]] for one in dict.fromkeys(labels)]
    drawn = _resampled_sums(parts, resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
    units = np.stack([part.sum(0) for part in parts]) if len(parts) > 1 else pairs
    if len(units) < FEW:
        ends = around(ratio, _student_half(units, confidence))
        low, high = min(low, ends[0]), max(high, ends[1])
    return Interval(ratio, float(each.std(ddof=1)), float(low), float(high), len(pairs))


def _around(middle: float, half: float) -> tuple[float, float]:
    return middle - half, middle + half


def _around_ratio(middle: float, half: float) -> tuple[float, float]:
    if middle <= 0:
        return _around(middle, half)
    factor = math.exp(half / middle)
    return middle / factor, middle * factor


def _student_half(units: np.ndarray, confidence: float) -> float:
    """Return half of Student's interval of the ratio of the sums of (G, 2) independent pairs."""
    above, below = units.sum(0)
    # What each unit adds to the ratio's error, to first order.
    errors = (units[:, 0] - above / below * units[:, 1]) / below
    count = len(units)
    spread = math.sqrt(count / (count - 1) * float(np.square(errors).sum()))
    return student_quantile(confidence, count - 1) * spread


def student_quantile(confidence: float, freedom: int) -> float:
    """Return t such that Student's distribution lies within -t and t that often.

    Args:
        confidence: in (0, 1).
        freedom: degrees of freedom, at least 1.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, by bisection over the angle.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        inside = _share_within(middle, freedom) < confidence
        low, high = (middle, high) if inside else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _share_within(angle: float, freedom: int) -> float:
    """Return how often Student's t lies within sqrt(freedom) tan(angle) of 0."""
    odd = freedom % 2
    power = math.cos(angle) if odd else 1.0
    term, total = power, 0.0
    for index in range(freedom // 2):
        total += term
        step = 2 * index + 1 + odd
        term *= math.cos(angle) ** 2 * step / (step + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def _resampled_sums(
    parts: list[np.ndarray], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return (resamples, 2) sums over redrawn clips of redrawn groups, (N, 2) pairs each."""
    chosen = rng.integers(len(parts), size=(resamples, len(parts)))
    total = np.zeros((resamples, 2))
    for slot in range(len(parts)):
        for index, part in enumerate(parts):
            mine = np.flatnonzero(chosen[:, slot] == index)
            total[mine] += part[rng.integers(len(part), size=(mine.size, len(part)))].sum(1)
    return total
