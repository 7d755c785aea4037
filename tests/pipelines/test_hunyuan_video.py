from collections.abc import Callable
from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.pipelines import testing, testing_hunyuan
from vidsparse.pipelines.attach import attach
from vidsparse.pipelines.hunyuan_video import HunyuanVideoFamily
from vidsparse.pipelines.testing import TinyPipeline

LARGE = {"height": 256, "width": 256, "num_frames": 33}


@pytest.fixture(scope="module")
def tiny() -> TinyPipeline:
    return testing.hunyuan_video()


@pytest.mark.parametrize(
    "build", [testing_hunyuan.hunyuan_image_to_video, testing_hunyuan.skyreels_image_to_video]
)
def test_contract_with_an_image(
    build: Callable[[], TinyPipeline], contract: Callable[..., Any]
) -> None:
    family = contract(build())
    layout = family.check_dense()
    assert (layout.grid, layout.text_before, layout.text_after) == ((3, 2, 2), 0, 16)
    spy = family.spy
    rows = {(s.branch, o.text_valid) for s, o in zip(spy.sites, spy.layouts, strict=True)}
    assert rows == {(0, (13,)), (1, (4,))}
    family.check_marker()
    family.check_sparse({"height": 160, "width": 160})
    family.check_disabled()


def test_contract_of_text_to_video(tiny: TinyPipeline, contract: Callable[..., Any]) -> None:
    family = contract(tiny)
    family.check_dense()
    family.check_marker()
    family.check_sparse({"height": 160, "width": 160, "num_videos_per_prompt": 2})


def test_dense_run_is_bit_identical(tiny: TinyPipeline, spy: Any) -> None:
    expected = tiny.generate()
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.generate(), expected)
    attachment.detach()
    layout = spy.layouts[0]
    assert (layout.grid, layout.text_before, layout.text_after) == ((3, 2, 2), 0, 16)
    # <s> and the 12 characters of the prompt.
    assert layout.text_valid == (13,)
    assert [s.layer for s in spy.sites] == [0, 1] * 2


def test_unguided_and_guided_prompts_have_their_own_padding(tiny: TinyPipeline, spy: Any) -> None:
    attachment = attach(tiny.pipe, spy)
    tiny.latents(changes={"true_cfg_scale": 2.0, "negative_prompt": "bad"})
    attachment.detach()
    assert spy.places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    valid = {
        (s.branch, layout.text_valid) for s, layout in zip(spy.sites, spy.layouts, strict=True)
    }
    assert valid == {(0, (13,)), (1, (4,))}


def test_padding_does_not_reach_a_sparse_video(tiny: TinyPipeline) -> None:
    with vidsparse.enabled(tiny.pipe, "random", density=0.5, dense_steps=0) as handle:
        short = tiny.latents(changes={**LARGE, "max_sequence_length": 13})
        padded = tiny.latents(changes={**LARGE, "max_sequence_length": 48})
    assert handle.summary().sparse_calls == 8
    # Rounding alone gives 1.4e-5 for dense attention, unmasked padding 1e-3.
    assert float((padded - short).norm() / short.norm()) < 1e-4


def test_sparse_run_differs_a_little_and_repeats(tiny: TinyPipeline) -> None:
    dense = tiny.latents(changes=LARGE)
    with vidsparse.enabled(tiny.pipe, "svg", density=0.4, dense_steps=0) as handle:
        sparse = tiny.latents(changes=LARGE)
        assert torch.equal(tiny.latents(changes=LARGE), sparse)
    assert 0 < float((sparse - dense).norm() / dense.norm()) < 0.1
    assert handle.summary().density == pytest.approx(0.4, abs=0.05)


def test_padding_is_counted_once_per_mask() -> None:
    class Counted(torch.Tensor):
        reads = 0

        def sum(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            Counted.reads += 1
            return self.as_subclass(torch.Tensor).sum(*args, **kwargs)

    transformer = testing.hunyuan_video().pipe.transformer
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).as_subclass(Counted)
    inputs = {
        "hidden_states": torch.zeros(2, 4, 3, 4, 4),
        "encoder_hidden_states": torch.zeros(2, 3, 16),
        "encoder_attention_mask": mask,
    }
    family = HunyuanVideoFamily()
    assert {family.layout(transformer, inputs).text_valid for _ in range(3)} == {(2, 1)}
    assert Counted.reads == 1
    mask.as_subclass(torch.Tensor)[1, 1] = 1
    assert family.layout(transformer, inputs).text_valid == (2, 2)
