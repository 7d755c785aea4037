from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing, testing_ltx
from vidsparse.pipelines.attach import attach
from vidsparse.pipelines.ltx_video import LTXVideoFamily

LARGE = {"height": 96, "width": 64, "num_frames": 17}


BUILD = {
    "text": (testing.ltx_video, VideoLayout(5, 8, 8)),
    "image": (testing_ltx.ltx_image_to_video, VideoLayout(5, 8, 8)),
    "conditions": (
        partial(testing.ltx_video, conditions=True),
        VideoLayout(5, 8, 8, text_before=64),
    ),
    "long": (testing_ltx.ltx_long, VideoLayout(3, 8, 8)),
}


@pytest.mark.parametrize("name", BUILD)
def test_contract(name: str, contract: Callable[..., Any]) -> None:
    build, layout = BUILD[name]
    family = contract(build())
    assert family.check_dense() == layout
    long = [(0, 0, 0), (1, 0, 0)]
    assert family.spy.places == (long if name == "long" else [(0, 0, 0), (0, 1, 0)])
    family.check_marker("BSC", (1, 1, 1))
    if name != "long":
        family.check_output()
    family.check_sparse({"height": 64})
    family.check_disabled()


def test_neighbours_of_a_window_stand_behind_it(spy: Any) -> None:
    tiny = testing_ltx.ltx_long()
    attachment = attach(tiny.pipe, spy)
    tiny.latents()
    attachment.detach()
    # The second window has the first one's head for its negative index.
    assert spy.layouts[-1] == VideoLayout(3, 8, 8, text_after=64)


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
    assert layout == VideoLayout(3, 4, 5)


@pytest.mark.parametrize("given", [None, 1])
def test_video_is_told_from_conditions_by_its_times(given: int | None) -> None:
    grid = coordinates(3, 4, 5)
    # A key frame in front; a copy of the whole video, in front of or behind it.
    frame = grid[:, :, 20:40]
    family = LTXVideoFamily()

    def layout(*parts: torch.Tensor) -> VideoLayout:
        inputs = {"video_coords": torch.cat(parts, dim=2), "num_frames": given}
        return family.layout(None, inputs)

    assert layout(frame, grid) == VideoLayout(3, 4, 5, text_before=20)
    assert layout(grid, frame) == VideoLayout(3, 4, 5, text_after=20)
    copies = (0, 60) if given else (60, 0)
    assert layout(grid, grid) == VideoLayout(3, 4, 5, *copies)


def test_coordinates_of_no_grid_are_refused() -> None:
    scattered = coordinates(3, 4, 5)[:, :, :-1]
    with pytest.raises(UnsupportedPipelineError, match="the 59 tokens of this LTX pipeline"):
        LTXVideoFamily().layout(None, {"video_coords": scattered})
