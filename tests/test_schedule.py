from dataclasses import replace

import numpy as np
import pytest

from vidsparse.errors import UsageError
from vidsparse.plan import CallSite
from vidsparse.schedule import DenseSchedule

SITE = CallSite("transformer", 3, 40, 0, 50, 0.9, 0, 0)


def dense_steps(schedule, num_steps):
    sites = [replace(SITE, step=step, num_steps=num_steps) for step in range(num_steps)]
    return sum(schedule.reason(site) is not None for site in sites)


@pytest.mark.parametrize(
    # svg.md W1: the counts of the published scripts, and 500 steps where theirs admits 101.
    ("share", "num_steps", "count"),
    [
        (0.2, 50, 10),
        (0.35, 40, 14),
        (0.2, 40, 8),
        (0.1, 50, 5),
        (0.3, 35, 10),
        (0.0, 50, 0),
        (1.0, 50, 50),
        (0.2, 500, 100),
        (0.29, 100, 29),
    ],
)
def test_a_share_of_the_steps_is_counted_exactly(share, num_steps, count):
    assert dense_steps(DenseSchedule(dense_steps=share), num_steps) == count


@pytest.mark.parametrize(
    # svg.md W2.
    ("share", "layers", "count"),
    [(0.03, 40, 1), (0.03, 60, 1), (0.03, 36, 1), (0.0, 40, 0), (2, 42, 2)],
)
def test_dense_layers(share, layers, count):
    schedule = DenseSchedule(dense_steps=0, dense_layers=share)
    sites = [replace(SITE, layer=layer, num_layers=layers, step=9) for layer in range(layers)]
    reasons = [schedule.reason(site) for site in sites]
    assert reasons.count("dense layers") == count
    assert reasons[:count] == ["dense layers"] * count


def test_sigma_needs_no_step_count():
    schedule = DenseSchedule(dense_steps=0, dense_above_sigma=0.8)
    assert schedule.reason(replace(SITE, num_steps=None, sigma=0.81)) == "dense above sigma"
    assert schedule.reason(replace(SITE, num_steps=None, sigma=0.8)) is None


def test_a_share_of_unknown_steps_says_what_to_do():
    with pytest.raises(UsageError, match="num_steps="):
        DenseSchedule(dense_steps=0.2).reason(replace(SITE, num_steps=None))
    assert DenseSchedule(dense_steps=2).reason(replace(SITE, num_steps=None)) == "dense steps"


@pytest.mark.parametrize(
    "wrong", [{"dense_steps": 1.5}, {"dense_layers": -1}, {"dense_above_sigma": 3.0}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match="must"):
        DenseSchedule(**wrong)


def test_whole_numbers_of_any_kind_are_counts() -> None:
    schedule = DenseSchedule(dense_steps=np.int64(1), dense_layers=np.int32(3))
    assert schedule.reason(replace(SITE, step=1, layer=3, num_steps=50, num_layers=40)) is None
    assert schedule.first_sparse_layer(40) == 3
    assert DenseSchedule(dense_layers=0.5).first_sparse_layer(40) == 20
    assert DenseSchedule(dense_layers=99).first_sparse_layer(40) == 40
