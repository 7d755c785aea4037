from collections.abc import Callable
from typing import Any

import pytest
import torch

from vidsparse.pipelines import testing
from vidsparse.pipelines.attach import attach
from vidsparse.pipelines.testing import TinyPipeline

BUILD = [
    testing.wan,
    testing.wan_image_to_video,
    testing.wan_video_to_video,
    testing.wan_vace,
]


@pytest.mark.parametrize("build", BUILD)
def test_dense_run_is_bit_identical(build: Callable[[], TinyPipeline], spy: Any) -> None:
    tiny = build()
    expected = tiny.latents(steps=4)
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.latents(steps=4), expected)
    attachment.detach()
    assert {layout.grid for layout in spy.layouts} == {(3, 2, 2)}
    assert {shape[2] for shape in spy.shapes} == {12}
    assert torch.equal(tiny.latents(steps=4), expected)


def test_two_experts_share_the_steps(spy: Any) -> None:
    tiny = testing.wan(experts=2)
    expected = tiny.latents(steps=4)
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.latents(steps=4), expected)
    attachment.detach()
    seen = {(s.step, s.transformer) for s in spy.sites}
    assert seen == {
        (0, "transformer"),
        (1, "transformer"),
        (2, "transformer_2"),
        (3, "transformer_2"),
    }
    assert {s.num_layers for s in spy.sites} == {2}
    assert spy.resets == 1, "the second expert must not make the first one's states forgotten"
    assert {s.generation for s in spy.sites} == {0}
    for transformer in (tiny.pipe.transformer, tiny.pipe.transformer_2):
        assert not transformer._forward_pre_hooks


def test_single_second_expert_is_enough(spy: Any) -> None:
    tiny = testing.wan(experts=2)
    tiny.pipe.transformer = None
    tiny.pipe.register_to_config(boundary_ratio=1.0)
    attachment = attach(tiny.pipe, spy)
    tiny.latents()
    attachment.detach()
    assert {s.transformer for s in spy.sites} == {"transformer_2"}


def test_skipped_first_steps_count_from_zero(spy: Any) -> None:
    tiny = testing.wan_video_to_video()
    attachment = attach(tiny.pipe, spy)
    tiny.latents(steps=4)
    attachment.detach()
    assert spy.places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    assert {s.num_steps for s in spy.sites} == {2}


def test_control_blocks_are_layers_too(spy: Any) -> None:
    tiny = testing.wan_vace()
    attachment = attach(tiny.pipe, spy)
    tiny.latents(steps=1)
    attachment.detach()
    assert [s.layer for s in spy.sites] == [0, 1, 2] * 2


def test_latent_frames_and_patches_make_the_grid(spy: Any) -> None:
    tiny = testing.wan()
    attachment = attach(tiny.pipe, spy)
    tiny.latents(steps=1, changes={"height": 64, "width": 48, "num_frames": 17})
    attachment.detach()
    assert spy.layouts[0].grid == (5, 4, 3)
    assert spy.layouts[0].text_tokens == 0
