from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing_worlds
from vidsparse.pipelines.attach import attach

LARGE = {"height": 192, "width": 192}
BUILD = {
    "1 text": testing_worlds.cosmos1,
    "1 video": partial(testing_worlds.cosmos1, video=True),
    "2 video": testing_worlds.cosmos2,
    "2 image": partial(testing_worlds.cosmos2, image=True),
    "2.5": testing_worlds.cosmos25,
    "2.5 transfer": partial(testing_worlds.cosmos25, transfer=True),
}
FRAMES = {"2 image": 1, "2.5 transfer": 2}
# One frame has fewer tokens.
SIZE = {"2 image": {"height": 288, "width": 288}}


@pytest.mark.parametrize("name", BUILD)
def test_contract(name: str, contract: Callable[..., Any]) -> None:
    family = contract(BUILD[name]())
    assert family.check_dense() == VideoLayout(FRAMES.get(name, 3), 2, 2)
    assert family.spy.places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    family.check_marker()
    family.check_sparse(SIZE.get(name, LARGE))
    family.check_disabled()


@pytest.mark.parametrize(
    ("name", "first"), [("1 text", 80 / 81), ("2 video", 80 / 81), ("2.5", 1.0)]
)
def test_sigma_is_the_share_of_noise(name: str, first: float, spy: Any) -> None:
    tiny = BUILD[name]()
    attachment = attach(tiny.pipe, spy)
    tiny.latents(steps=3)
    attachment.detach()
    sigmas = [s.sigma for s in spy.sites if s.layer == s.branch == 0]
    assert sigmas[0] == pytest.approx(first, abs=1e-4)
    assert sigmas == sorted(sigmas, reverse=True)


def test_control_net_is_left_alone(spy: Any) -> None:
    pipe = BUILD["2.5 transfer"]().pipe
    before = [block.attn1.processor for block in pipe.controlnet.control_blocks]
    attachment = attach(pipe, spy)
    now = [block.attn1.processor for block in pipe.controlnet.control_blocks]
    attachment.detach()
    assert all(a is b for a, b in zip(before, now, strict=True))
