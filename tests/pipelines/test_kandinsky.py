from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing_worlds
from vidsparse.pipelines.attach import attach

# 17 frames from an image; the reference frame of Kandinsky 6 makes four of three.
BUILD = {
    "5 text": (testing_worlds.kandinsky5, 3),
    "5 image": (partial(testing_worlds.kandinsky5, image=True), 5),
    "6": (testing_worlds.kandinsky6, 4),
}


@pytest.mark.parametrize("name", BUILD)
def test_contract(name: str, contract: Callable[..., Any]) -> None:
    build, frames = BUILD[name]
    family = contract(build())
    assert family.check_dense() == VideoLayout(frames, 2, 2)
    assert family.spy.places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    family.check_marker("BFHWC")
    family.check_sparse({"height": 160, "width": 160})
    family.check_disabled()


def test_audio_and_text_are_left_alone(spy: Any) -> None:
    transformer = testing_worlds.kandinsky6().pipe.transformer
    block = transformer.visual_transformer_blocks[0]
    others = [
        module
        for module in block.modules()
        if hasattr(module, "processor") and module is not block.video_dec_block.self_attention
    ]
    before = [module.processor for module in others]
    attachment = attach(transformer, spy)
    assert len(others) > 2
    assert all(a is m.processor for a, m in zip(before, others, strict=True))
    attachment.detach()


def test_nabla_is_refused_with_the_reason(spy: Any) -> None:
    pipe = testing_worlds.kandinsky5(attention="nabla").pipe
    with pytest.raises(UnsupportedPipelineError, match="NABLA attention is block-sparse"):
        attach(pipe, spy)
    assert not pipe.transformer._forward_pre_hooks
