"""The tracker alone, told what pipelines and loops tell it."""

import math
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import Tensor

from vidsparse.pipelines.tracker import Clock, StepTracker, clock_of

Place = tuple[int, int, int]


def run(tracker: StepTracker, time: Tensor | float | None, clock: Clock | None = None) -> Place:
    tracker.begin_forward(time, clock or Clock())
    tracker.end_forward()
    return tracker.generation, tracker.step, tracker.branch


def test_new_time_is_a_step_and_same_time_a_branch() -> None:
    tracker = StepTracker()
    places = [run(tracker, torch.tensor([t])) for t in (900.0, 900.0, 500.0, 500.0, 500.0)]
    assert places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, 2)]


def test_rising_time_begins_a_generation() -> None:
    tracker = StepTracker()
    assert [run(tracker, t) for t in (900.0, 100.0, 900.0)] == [(0, 0, 0), (0, 1, 0), (1, 0, 0)]


def test_falling_time_begins_a_generation_where_time_rises() -> None:
    tracker, clock = StepTracker(), Clock(time_rises=True)
    times = (100.0, 900.0, 100.0)
    assert [run(tracker, t, clock) for t in times] == [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
    assert tracker.sigma == pytest.approx(0.9)


def test_same_object_needs_no_read() -> None:
    class Unreadable(torch.Tensor):
        reads = 0

        def to(self, *args: object, **kwargs: object) -> Tensor:
            Unreadable.reads += 1
            return self.as_subclass(Tensor).to(torch.float64)

    tracker, time = StepTracker(), torch.tensor(900.0).as_subclass(Unreadable)
    assert [run(tracker, time) for _ in range(3)] == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]
    assert Unreadable.reads == 1
    assert tracker.sigma == 0.9


def test_refilled_tensor_is_a_new_step() -> None:
    tracker, time = StepTracker(), torch.tensor([900.0])
    run(tracker, time)
    assert run(tracker, time.fill_(500.0)) == (0, 1, 0)


def test_refilled_inference_tensor_is_a_new_step() -> None:
    tracker = StepTracker()
    with torch.inference_mode():
        time = torch.tensor([900.0])
        places = [run(tracker, time.fill_(t)) for t in (900.0, 900.0, 500.0)]
    assert places == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]


def test_times_that_round_to_one_value_are_told_apart_by_the_scheduler() -> None:
    # 992.3 and 991.5 are both 992 in bfloat16: a linear-quadratic schedule has such steps.
    timesteps = torch.tensor([992.3, 991.5])
    tracker = StepTracker()
    first = torch.tensor([992.3], dtype=torch.bfloat16)
    second = torch.tensor([991.5], dtype=torch.bfloat16)
    assert torch.equal(first, second)
    assert run(tracker, first, Clock(timesteps, None)) == (0, 0, 0)
    assert run(tracker, second, Clock(timesteps, 1)) == (0, 1, 0)
    assert run(tracker, second.clone(), Clock(timesteps, 1)) == (0, 1, 1)


def test_new_timesteps_object_begins_a_generation_at_the_same_time() -> None:
    tracker = StepTracker()
    for generation in range(3):
        clock = Clock(torch.tensor([900.0, 500.0]), num_steps=2)
        assert run(tracker, 900.0, clock) == (generation, 0, 0)
        assert tracker.num_steps == 2


def test_pipeline_that_is_not_running_is_not_asked_for_the_steps() -> None:
    tracker, stale = StepTracker(), torch.tensor(900.0)
    runs = Clock(object(), num_steps=10, scheduled_steps=20, current=stale)
    aborted = Clock(object(), num_steps=10, scheduled_steps=2, current=stale)
    ended = Clock(object(), num_steps=10, scheduled_steps=3)
    seen = [(run(tracker, 900.0, clock), tracker.num_steps) for clock in (runs, aborted, ended)]
    assert seen == [((0, 0, 0), 10), ((1, 0, 0), 2), ((2, 0, 0), 3)]


def test_aborted_forward_begins_a_generation_at_the_same_time() -> None:
    tracker = StepTracker()
    tracker.begin_forward(900.0, Clock())
    assert run(tracker, 900.0) == (1, 0, 0)


def test_told_generation_is_one_whatever_time_and_scheduler_do() -> None:
    tracker = StepTracker()
    run(tracker, 500.0)
    tracker.restart(told=True, num_steps=3)
    times = [(500.0, Clock(object())), (900.0, Clock(object())), (100.0, Clock(object()))]
    assert [run(tracker, *each) for each in times] == [(1, 0, 0), (1, 1, 0), (1, 2, 0)]
    assert tracker.num_steps == 3
    tracker.restart()
    assert run(tracker, 50.0) == (2, 0, 0)
    assert tracker.num_steps is None


@pytest.mark.parametrize(
    ("time", "sigma"),
    [
        (torch.tensor(750), 0.75),
        (torch.tensor([750.0, 750.0]), 0.75),
        (torch.tensor([[0.0, 750.0, 750.0]]), 0.75),
        (torch.tensor([1200.0]), 1.0),
        (250, 0.25),
        (None, None),
    ],
)
def test_sigma_is_the_highest_time_of_a_row(time: Tensor | float, sigma: float | None) -> None:
    tracker = StepTracker()
    run(tracker, time)
    assert tracker.sigma == sigma


@pytest.mark.parametrize(
    ("scale", "time", "sigma"), [(1.0, 0.75, 0.75), (float("inf"), math.log(3) / 4, 0.75)]
)
def test_sigma_follows_the_scale_of_time(scale: float, time: float, sigma: float) -> None:
    # EDM models are told ln(sigma) / 4; sigma 3 is three parts of noise in four.
    tracker = StepTracker()
    run(tracker, time, Clock(time_scale=scale))
    assert tracker.sigma == pytest.approx(sigma)


def test_times_per_frame_advance_when_one_frame_does() -> None:
    tracker = StepTracker()
    rows = ([900.0, 900.0], [500.0, 900.0], [500.0, 500.0])
    assert [run(tracker, torch.tensor([row])) for row in rows] == [(0, n, 0) for n in range(3)]


def test_unknown_time_never_leaves_the_first_step() -> None:
    tracker = StepTracker()
    assert [run(tracker, None) for _ in range(2)] == [(0, 0, 0), (0, 0, 1)]


def test_clock_of_nothing_knows_nothing_but_the_direction() -> None:
    assert clock_of(None) == Clock()
    assert clock_of(None, time_rises=True) == Clock(time_rises=True)


def test_scheduler_tells_no_steps_before_they_are_set() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = SimpleNamespace(scheduler=scheduler)
    assert clock_of(pipe).scheduled_steps is None
    scheduler.set_timesteps(5)
    assert clock_of(pipe).scheduled_steps == 5
    scheduler.set_begin_index(2)
    assert clock_of(pipe).scheduled_steps == 3
