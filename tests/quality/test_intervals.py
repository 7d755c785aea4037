import numpy as np
import pytest
from scipy.stats import bootstrap, t

from vidsparse.quality import bootstrap_mean, bootstrap_ratio
from vidsparse.quality.intervals import student_quantile


def test_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).normal(20, 3, 24)
    found = bootstrap_mean(list(values))
    expected = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert found.spread == pytest.approx(values.std(ddof=1))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.06)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [bootstrap_mean(list(rng.normal(0, 1, 20)), resamples=400) for _ in range(300)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.87 < covered < 0.98


@pytest.mark.parametrize("count", [2, 4, 8])
def test_interval_of_few_prompts_covers_the_mean_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(count)
    hits = []
    for values in rng.normal(-0.6, 0.3, (1000, count)):
        found = bootstrap_mean(list(values), range(count), resamples=50)
        hits.append(found.low <= -0.6 <= found.high)
    assert np.mean(hits) >= 0.93


@pytest.mark.parametrize("count", [2, 4, 8])
def test_interval_of_a_ratio_over_few_prompts_covers_it(count: int) -> None:
    rng = np.random.default_rng(count)
    hits = []
    for _ in range(1000):
        below = rng.uniform(8, 12, 2 * count)
        above = 1.5 * below + rng.normal(0, 0.4, 2 * count)
        found = bootstrap_ratio(list(above), list(below), [*range(count)] * 2, resamples=50)
        hits.append(found.low <= 1.5 <= found.high)
    assert np.mean(hits) >= 0.93


def test_interval_of_a_ratio_of_two_clips_is_above_0() -> None:
    found = bootstrap_ratio([4.0, 8.0], [2.0, 3.0], ["a", "b"])
    assert 0 < found.low < 2
    assert found.high > 8 / 3
    assert found.low * found.high == pytest.approx(found.mean**2)


def test_interval_of_few_clips_is_students() -> None:
    values = [1.0, 2.0, 4.0, 5.0]
    found = bootstrap_mean(values)
    expected = t.interval(0.95, 3, np.mean(values), np.std(values, ddof=1) / 2)
    assert (found.low, found.high) == pytest.approx(expected)
    grouped = bootstrap_mean([value for value in values for _ in range(3)], [*"aaabbbcccddd"])
    assert (grouped.low, grouped.high) == pytest.approx(expected)


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_quantile_is_scipys(freedom: int, confidence: float) -> None:
    expected = t.ppf((1 + confidence) / 2, freedom)
    assert student_quantile(confidence, freedom) == pytest.approx(expected)


def test_ratio_of_sums_is_within_its_interval() -> None:
    rng = np.random.default_rng(3)
    below = rng.uniform(1, 9, 12)
    above = below * rng.normal(1.5, 0.1, 12)
    found = bootstrap_ratio(list(above), list(below))
    assert found.mean == pytest.approx(above.sum() / below.sum())
    assert found.low < found.mean < found.high
    assert found.spread == pytest.approx((above / below).std(ddof=1))
    assert bootstrap_ratio([3.0], [2.0]).as_dict()["mean"] == 1.5
    with pytest.raises(ValueError, match="give pairs"):
        bootstrap_ratio([1.0, 2.0], [1.0])


def test_clips_of_one_prompt_are_no_independent_evidence() -> None:
    # Four prompts that differ, four clips each that hardly do.
    rng = np.random.default_rng(2)
    prompts = [prompt for prompt in range(4) for _ in range(4)]
    values = [5.0 * prompt + rng.normal(0, 0.1) for prompt in prompts]
    grouped, flat = bootstrap_mean(values, prompts), bootstrap_mean(values)
    assert grouped.high - grouped.low > 1.5 * (flat.high - flat.low)


def test_same_values_same_interval() -> None:
    values = [1.0, 2.0, 4.0]
    assert bootstrap_mean(values, "aab") == bootstrap_mean(values, "aab")


def test_one_clip_has_no_interval() -> None:
    found = bootstrap_mean([3.0])
    assert (found.mean, found.spread, found.low, found.high, found.count) == (
        3,
        None,
        None,
        None,
        1,
    )


@pytest.mark.parametrize("values", [[], [1.0, float("inf")], [float("nan")]])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        bootstrap_mean(values)


def test_every_clip_needs_its_group() -> None:
    with pytest.raises(ValueError, match="2 values but 1 groups"):
        bootstrap_mean([1.0, 2.0], ["a"])
