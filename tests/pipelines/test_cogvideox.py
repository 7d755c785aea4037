from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing, testing_cogvideox
from vidsparse.pipelines.attach import attach

LARGE = {"height": 256, "width": 256, "num_frames": 33}
BUILD = {
    "text": testing.cogvideox,
    "text 1.5": partial(testing.cogvideox, version="1.5"),
    "image": testing_cogvideox.image_to_video,
    "video": testing_cogvideox.video_to_video,
    "control": testing_cogvideox.fun_control,
    "ConsisID": testing_cogvideox.consisid,
}


@pytest.mark.parametrize("name", BUILD)
def test_contract(name: str, contract: Callable[..., Any]) -> None:
    joined = 2 if name == "text 1.5" else 1
    family = contract(BUILD[name]())
    layout = family.check_dense()
    assert layout == VideoLayout(2 if joined == 2 else 3, 2, 2, text_before=16)
    # Negative and positive prompt are rows of one forward.
    assert {shape[0] for shape in family.spy.shapes} == {2}
    assert family.spy.places == [(0, step, 0) for step in range(1 if name == "video" else 2)]
    family.check_marker("BFCHW", (joined, 2, 2))
    family.check_sparse({"height": 192, "width": 192, "num_videos_per_prompt": 2})
    family.check_disabled()


@pytest.mark.parametrize("version", ["1.0", "1.5"])
def test_sparse_run_differs_a_little_and_repeats(version: str) -> None:
    tiny = testing.cogvideox(version=version)
    dense = tiny.latents(changes=LARGE)
    with vidsparse.enabled(tiny.pipe, "svg", density=0.4, dense_steps=0) as handle:
        sparse = tiny.latents(changes=LARGE)
        assert torch.equal(tiny.latents(changes=LARGE), sparse)
    assert 0 < float((sparse - dense).norm() / dense.norm()) < 0.1
    assert handle.summary().sparse_calls == 8
    assert handle.summary().density == pytest.approx(0.4, abs=0.05)


def test_fusing_projections_before_enabling_works_and_after_is_noticed(spy: Any) -> None:
    tiny = testing.cogvideox()
    attachment = attach(tiny.pipe, spy)
    tiny.pipe.transformer.fuse_qkv_projections()
    with pytest.raises(UsageError, match="were replaced"):
        tiny.latents()
    attachment.detach()
    expected = tiny.latents()
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.latents(), expected)
    attachment.detach()
    assert len(spy.sites) == 4
