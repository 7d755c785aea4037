"""Guidance in all its forms: branches, batches, guiders, and passes that are perturbed."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import LayerSkipConfig
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode, apply_layer_skip

import vidsparse
from vidsparse.pipelines import testing, testing_hunyuan, testing_more
from vidsparse.pipelines.attach import attach

SKIPPED = LayerSkipConfig(indices=[0], fqn="transformer_blocks")
GUIDERS = {
    "none": (diffusers.ClassifierFreeGuidance(guidance_scale=1.0), 1),
    "classifier-free": (diffusers.ClassifierFreeGuidance(guidance_scale=3.0), 2),
    "adaptive": (diffusers.AdaptiveProjectedGuidance(guidance_scale=3.0), 2),
    "zero star": (diffusers.ClassifierFreeZeroStarGuidance(guidance_scale=3.0), 2),
    "skip layer": (
        diffusers.SkipLayerGuidance(
            guidance_scale=3.0,
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=1.0,
            skip_layer_config=SKIPPED,
        ),
        3,
    ),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_each_condition_of_a_guider_is_a_branch(name: str, spy: Any) -> None:
    tiny = testing_more.motif_video()
    guider, branches = GUIDERS[name]
    tiny.pipe.register_modules(guider=guider)
    expected = tiny.latents()
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.latents(), expected)
    attachment.detach()
    # This guider leaves the first step alone. Then its last branch skips one layer of three, and
    # stays dense in the others.
    perturbed = name == "skip layer"
    sparse = branches - perturbed
    assert spy.places == [(0, step, branch) for step in range(2) for branch in range(sparse)]
    assert dict(spy.recorder.dense) == ({"perturbed guidance": 2} if perturbed else {})


def test_branches_of_a_guider_have_states_of_their_own() -> None:
    tiny = testing_hunyuan.hunyuan_video15()
    large = {"height": 160, "width": 160}
    with vidsparse.enabled(tiny.pipe, "random", density=0.5, dense_steps=0) as handle:
        tiny.latents(changes=large)
        keys = {key[0] for key in handle._attachment.attention._states}
    assert keys == {("transformer", layer, branch) for layer in range(2) for branch in range(2)}


def wan_forward(transformer: Any, size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        out: torch.Tensor = transformer(
            hidden_states=torch.randn(1, 16, 3, size, size, generator=generator),
            timestep=torch.tensor([900.0]),
            encoder_hidden_states=torch.randn(1, 16, 32, generator=generator),
        ).sample
    return out


def test_values_in_the_place_of_attention_are_honoured(spy: Any) -> None:
    transformer = testing.wan_transformer()
    plain = wan_forward(transformer)
    with AttentionScoreSkipFunctionMode():
        expected = wan_forward(transformer)
    assert not torch.equal(expected, plain)
    attachment = attach(transformer, spy)
    with AttentionScoreSkipFunctionMode():
        assert torch.equal(wan_forward(transformer), expected)
    assert torch.equal(wan_forward(transformer), plain)
    attachment.detach()


@pytest.mark.parametrize("ff", [True, False])
def test_forward_with_skipped_layers_stays_dense(ff: bool, spy: Any) -> None:
    transformer = testing.wan_transformer()
    skip = LayerSkipConfig(indices=[1], fqn="blocks", skip_attention=ff, skip_ff=True)
    apply_layer_skip(transformer, skip)
    expected = wan_forward(transformer, 20)
    with vidsparse.enabled(transformer, "random", density=0.5, dense_steps=0) as handle:
        assert torch.equal(wan_forward(transformer, 20), expected)
        # A whole block is skipped, or only its feed-forward.
        assert dict(handle.recorder.dense) == {"perturbed guidance": 1 if ff else 2}
        for module in transformer.modules():
            if hasattr(module, "_diffusers_hook"):
                HookRegistry.check_if_exists_or_initialize(module).remove_hook("layer_skip_hook")
        wan_forward(transformer, 20)
        assert handle.summary().sparse_calls == 2


def test_batched_guidance_and_two_prompts_are_rows(spy: Any) -> None:
    tiny = testing.ltx_video()
    two = {"prompt": ["a", "b"], "num_videos_per_prompt": 2}
    expected = tiny.latents(changes=two)
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.latents(changes=two), expected)
    attachment.detach()
    # Two prompts with two videos each, all of it guided.
    assert {shape[0] for shape in spy.shapes} == {8}
    assert spy.places == [(0, 0, 0), (0, 1, 0)]


def test_several_prompts_with_their_own_padding_keep_their_videos() -> None:
    tiny = testing.hunyuan_video()
    large = {"height": 160, "width": 160}
    two = {**large, "prompt": ["cat", "dance monkey"]}
    with vidsparse.enabled(tiny.pipe, "random", density=0.5, dense_steps=0) as handle:
        tiny.latents(changes=two)
        keys = {key[:2] for key in handle._attachment.attention._states}
    # Rows with padding are attended to one by one, each with a state.
    assert keys == {(("transformer", layer, 0), row) for layer in range(2) for row in range(2)}


def test_sizes_may_change_from_call_to_call(spy: Any) -> None:
    tiny = testing_hunyuan.hunyuan_video15()
    sizes = [{"height": 64, "width": 96}, {"height": 96, "width": 64}, {"num_frames": 5}]
    attachment = attach(tiny.pipe, spy)
    for size in sizes:
        tiny.latents(steps=1, changes=size)
    attachment.detach()
    grids = list(dict.fromkeys(layout.grid for layout in spy.layouts))
    assert grids == [(3, 4, 6), (3, 6, 4), (2, 4, 4)]
    assert spy.places == [(g, 0, b) for g in range(3) for b in range(2)]
