from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.errors import UsageError
from vidsparse.pipelines import testing
from vidsparse.pipelines.attach import attach

LARGE = {"height": 256, "width": 256, "num_frames": 33}


@pytest.mark.parametrize(("version", "frames"), [("1.0", 3), ("1.5", 2)])
def test_dense_run_is_bit_identical(version: str, frames: int, spy: Any) -> None:
    tiny = testing.cogvideox(version=version)
    expected = tiny.generate()
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.generate(), expected)
    attachment.detach()
    layout = spy.layouts[0]
    assert (layout.grid, layout.text_before, layout.text_after) == ((frames, 2, 2), 16, 0)
    # Negative and positive prompt are rows of one forward.
    assert {shape[0] for shape in spy.shapes} == {2}
    assert spy.places == [(0, 0, 0), (0, 1, 0)]


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
