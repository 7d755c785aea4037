from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.errors import UnsupportedPipelineError
from vidsparse.pipelines import testing
from vidsparse.pipelines.attach import attach
from vidsparse.pipelines.ltx_video import LTXVideoFamily

LARGE = {"height": 96, "width": 64, "num_frames": 17}


@pytest.mark.parametrize(("conditions", "in_front"), [(False, 0), (True, 64)])
def test_dense_run_is_bit_identical(conditions: bool, in_front: int, spy: Any) -> None:
    tiny = testing.ltx_video(conditions=conditions)
    expected = tiny.latents(steps=3)
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.latents(steps=3), expected)
    attachment.detach()
    assert {(layout.grid, layout.text_before) for layout in spy.layouts} == {((5, 8, 8), in_front)}
    assert spy.places == [(0, step, 0) for step in range(3)]


@pytest.mark.parametrize("conditions", [False, True])
def test_sparse_run_differs_a_little_and_repeats(conditions: bool) -> None:
    tiny = testing.ltx_video(conditions=conditions)
    dense = tiny.latents(changes=LARGE)
    with vidsparse.enabled(tiny.pipe, "svg", density=0.5, dense_steps=0) as handle:
        sparse = tiny.latents(changes=LARGE)
        assert torch.equal(tiny.latents(changes=LARGE), sparse)
    assert 0 < float((sparse - dense).norm() / dense.norm()) < 0.1
    assert handle.summary().sparse_calls == 8


def coordinates(*axes: int) -> torch.Tensor:
    grids = torch.meshgrid(*(torch.arange(n) for n in axes), indexing="ij")
    return torch.stack(grids).flatten(1)[None]


def test_grid_is_read_from_pixel_coordinates() -> None:
    scaled = coordinates(3, 4, 5) * torch.tensor([8, 32, 32]).view(1, 3, 1)
    layout = LTXVideoFamily().layout(None, {"video_coords": scaled, "num_frames": 1})
    assert (layout.grid, layout.text_before) == ((3, 4, 5), 0)


def test_coordinates_of_no_grid_are_refused() -> None:
    scattered = coordinates(3, 4, 5)[:, :, :-1]
    with pytest.raises(UnsupportedPipelineError, match="the 59 tokens of this LTX pipeline"):
        LTXVideoFamily().layout(None, {"video_coords": scattered})
