from collections.abc import Callable
from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing
from vidsparse.pipelines.attach import attach
from vidsparse.pipelines.testing import TinyPipeline

LARGE = {"height": 256, "width": 256, "num_frames": 25}
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")


@pytest.fixture(scope="module")
def tiny() -> TinyPipeline:
    return testing.mochi()


def test_contract(tiny: TinyPipeline, contract: Callable[..., Any]) -> None:
    family = contract(tiny)
    # The row of the empty prompt comes first: </s> alone is valid.
    assert family.check_dense() == VideoLayout(2, 2, 2, text_after=1)
    family.check_marker()
    family.check_sparse({"height": 192, "width": 192})
    family.check_disabled()


def test_dense_run_is_bit_identical(tiny: TinyPipeline, spy: Any) -> None:
    expected = tiny.generate(steps=3)
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.generate(steps=3), expected)
    attachment.detach()
    # Each row comes alone, with its own valid text: </s>, then 13 characters and </s>.
    rows = {(s.branch, o.grid, o.text_after) for s, o in zip(spy.sites, spy.layouts, strict=True)}
    assert rows == {(0, (2, 2, 2), 1), (1, (2, 2, 2), 14)}
    assert spy.places == [(0, step, row) for step in range(3) for row in range(2)]


def test_rising_time_is_falling_noise(tiny: TinyPipeline, spy: Any) -> None:
    attachment = attach(tiny.pipe, spy)
    tiny.latents(steps=4)
    attachment.detach()
    sigmas = [s.sigma for s in spy.sites if s.layer == s.branch == 0]
    assert sigmas == sorted(sigmas, reverse=True)
    assert {s.generation for s in spy.sites} == {0}


def test_sparse_run_differs_a_little_and_repeats(tiny: TinyPipeline) -> None:
    dense = tiny.latents(changes=LARGE)
    with vidsparse.enabled(tiny.pipe, "svg", density=0.5, dense_steps=0) as handle:
        sparse = tiny.latents(changes=LARGE)
        assert torch.equal(tiny.latents(changes=LARGE), sparse)
    assert 0 < float((sparse - dense).norm() / dense.norm()) < 0.1
    assert handle.summary().sparse_calls == 16
