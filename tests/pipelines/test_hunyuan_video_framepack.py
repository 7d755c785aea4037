from collections.abc import Callable
from typing import Any

import torch

from vidsparse.pipelines import testing_hunyuan
from vidsparse.pipelines.hunyuan_video_framepack import HunyuanVideoFramepackFamily


def test_contract(contract: Callable[..., Any]) -> None:
    tiny = testing_hunyuan.framepack()
    family = contract(tiny)
    family.check_dense()
    spy = family.spy
    layouts = {(s.branch, o) for s, o in zip(spy.sites, spy.layouts, strict=True)}
    # Two clean frames of 2 x 2 tokens, one and four frames of history at 1/2 and 1/4 of the size.
    assert {(o.grid, o.text_before, o.text_valid) for _, o in layouts} == {((3, 2, 2), 13, None)}
    # 16 tokens of the image, then 13 and 4 of the prompts.
    assert {(branch, o.text_after) for branch, o in layouts} == {(0, 29), (1, 20)}
    assert spy.places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    family.check_marker()
    family.check_sparse({"height": 160, "width": 160}, density=0.9)
    family.check_disabled()


def test_sections_are_generations(contract: Callable[..., Any]) -> None:
    family = contract(testing_hunyuan.framepack(num_frames=25))
    family.check_dense()
    assert family.spy.places == [(g, s, b) for g in range(3) for s in range(2) for b in range(2)]


def test_several_rows_keep_their_padding() -> None:
    transformer = testing_hunyuan.framepack().pipe.transformer
    mask = torch.arange(16) < torch.tensor([[13], [4]])
    inputs = {
        "hidden_states": torch.zeros(2, 4, 3, 4, 4),
        "encoder_hidden_states": torch.zeros(2, 16, 16),
        "encoder_attention_mask": mask,
        "image_embeds": torch.zeros(2, 16, 16),
    }
    layout = HunyuanVideoFramepackFamily().layout(transformer, inputs)
    assert (layout.text_before, layout.text_after, layout.text_valid) == (0, 32, (29, 20))
