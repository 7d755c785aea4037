from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing, testing_wan
from vidsparse.pipelines.attach import attach
from vidsparse.pipelines.testing_parts import picture

BUILD = {
    "text": testing.wan,
    "image": testing.wan_image_to_video,
    "first and last frame": testing_wan.first_last_frame_to_video,
    "5B": testing_wan.text_image_to_video_5b,
    "video": testing.wan_video_to_video,
    "VACE": testing.wan_vace,
    "Animate": testing_wan.animate,
    "ChronoEdit": testing_wan.chronoedit,
    "Lucy": testing_wan.lucy_edit,
    "SkyReels": testing_wan.skyreels_v2,
    "SkyReels image": partial(testing_wan.skyreels_v2, kind="ImageToVideo"),
    "SkyReels forcing": partial(testing_wan.skyreels_v2, kind="DiffusionForcing"),
    "SkyReels forcing image": partial(testing_wan.skyreels_v2, kind="DiffusionForcingImageToVideo"),
    "SkyReels forcing video": partial(testing_wan.skyreels_v2, kind="DiffusionForcingVideoToVideo"),
}
# Beside 9 frames, 3 of them latent: Animate's reference, ChronoEdit's first and last.
FRAMES = {"Animate": 4, "ChronoEdit": 2}
STEPS = {"video": 1}
SIZES = {"Animate": 128, "ChronoEdit": 192}


@pytest.mark.parametrize("name", BUILD)
def test_contract(name: str, contract: Callable[..., Any]) -> None:
    tiny = BUILD[name]()
    family = contract(tiny)
    layout = family.check_dense()
    assert layout == VideoLayout(FRAMES.get(name, 3), 2, 2)
    steps = STEPS.get(name, 2)
    generation = [(0, s, b) for s in range(steps) for b in range(2)]
    assert family.spy.places[: len(generation)] == generation
    family.check_marker()
    size = SIZES.get(name, 160)
    family.check_sparse({"height": size, "width": size})
    family.check_disabled()


def test_sections_of_diffusion_forcing_are_generations(spy: Any) -> None:
    tiny = BUILD["SkyReels forcing video"]()
    attachment = attach(tiny.pipe, spy)
    tiny.latents()
    attachment.detach()
    assert spy.places == [(g, s, b) for g in range(3) for s in range(2) for b in range(2)]


def test_causal_mask_of_diffusion_forcing_stays_dense(spy: Any) -> None:
    tiny = testing_wan.skyreels_v2(kind="DiffusionForcing")
    causal = {"causal_block_size": 3, "ar_step": 1}
    expected = tiny.latents(changes=causal)
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.latents(changes=causal), expected)
    attachment.detach()
    assert not spy.sites
    assert set(spy.recorder.dense) == {"attention mask"}


def test_temporal_reasoning_may_drop_frames_on_the_way(spy: Any) -> None:
    tiny = testing_wan.chronoedit()
    reasoning = {"enable_temporal_reasoning": True, "num_temporal_reasoning_steps": 1}
    expected = tiny.latents(changes=reasoning)
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.latents(changes=reasoning), expected)
    attachment.detach()
    assert [o.frames for o in spy.layouts] == [3] * 4 + [2] * 4


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


def test_reference_images_are_frames_in_front(spy: Any) -> None:
    tiny = testing.wan_vace()
    attachment = attach(tiny.pipe, spy)
    tiny.latents(steps=1, changes={"reference_images": [picture()] * 2})
    attachment.detach()
    assert spy.layouts[0] == VideoLayout(3 + 2, 2, 2)


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
