import logging
from dataclasses import replace

import pytest

from vidsparse.errors import UsageError
from vidsparse.methods import search_schedule
from vidsparse.methods.search_schedule import SearchSchedule


def test_the_papers_points_are_steps_10_and_30_of_50(cases):
    schedule = SearchSchedule((0.2, 0.6))
    assert schedule.steps(50) == (10, 30)
    passed = [
        schedule.passed(replace(cases.site(step=step), num_steps=50)) for step in (9, 10, 29, 30)
    ]
    assert passed == [0, 1, 1, 2]


def test_shares_are_exact_where_floats_are_not():
    assert SearchSchedule((0.29, 0.58)).steps(100) == (29, 58)


def test_points_of_short_runs_may_coincide():
    assert SearchSchedule((0.2, 0.4)).steps(2) == (0, 0)


def test_a_step_that_was_left_out_still_counts(cases):
    schedule = SearchSchedule((4, 12))
    assert [schedule.passed(cases.site(step=s)) for s in (3, 5, 11, 19)] == [0, 1, 1, 2]


def test_noise_levels_need_no_number_of_steps(cases):
    schedule = SearchSchedule(sigmas=(0.9, 0.5))
    at = [replace(cases.site(), sigma=s, num_steps=None) for s in (0.95, 0.9, 0.6, 0.2)]
    assert [schedule.passed(site) for site in at] == [0, 1, 1, 2]
    with pytest.raises(UsageError, match="need the noise level"):
        schedule.passed(replace(cases.site(), sigma=None))


def test_whole_steps_need_no_number_of_steps(cases):
    schedule = SearchSchedule((4, 12))
    assert schedule.passed(replace(cases.site(step=5), num_steps=None)) == 1
    with pytest.raises(UsageError, match="give num_steps= to handle"):
        SearchSchedule((0.2,)).passed(replace(cases.site(), num_steps=None))


@pytest.mark.parametrize(
    ("points", "sigmas", "message"),
    [
        ((0.2, 1.0), (), r"shares of the run in \[0, 1\)"),
        ((-1, 4), (), "at least 0"),
        ((0.6, 0.2), (), "must ascend"),
        ((4, 4), (), "must ascend"),
        ((4, 0.6), (), "mixes shares and whole steps"),
        ((), (0.5, 0.9), "must descend"),
        ((), (1.5,), r"must lie in \[0, 1\]"),
        ((0.2,), (0.5,), "exclude each other"),
    ],
)
def test_wrong_points_are_refused(points, sigmas, message):
    with pytest.raises(UsageError, match=message):
        SearchSchedule(points, sigmas)


def test_steps_outside_the_run_are_refused(cases):
    with pytest.raises(UsageError, match=r"lies outside a run of 20 steps; use steps in 0\.\.19"):
        SearchSchedule((10, 30)).passed(cases.site())


def test_short_runs_are_told_once(cases, caplog):
    search_schedule._warn_of_few_steps.cache_clear()
    schedule = SearchSchedule((0.2, 0.6))
    with caplog.at_level(logging.WARNING):
        schedule.tell_if_few_steps("adaspa", replace(cases.site(step=10), num_steps=50))
        assert not caplog.records
        for _ in range(2):
            schedule.tell_if_few_steps("adaspa", replace(cases.site(step=1), num_steps=4))
    (record,) = caplog.records
    assert "searches 2 time(s) in a run of 4 steps, first at its first sparse step 1" in (
        record.getMessage()
    )
