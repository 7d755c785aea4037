"""What a program puts around a pipeline, and how it fills a batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines.layers import _for_rows
from vidsparse.pipelines.testing import hunyuan_video, wan
from vidsparse.pipelines.testing_more import motif_video
from vidsparse.pipelines.testing_worlds import cosmos1

EVERYTHING = {"method": "lite", "dense_steps": 0, "parameters": {"threshold": 0.0}}
BLOCKS = {"parameters": {"blocks": (4, 4)}, "dense_steps": 0, "density": 0.9}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


# Their rotary embeddings or norms leave q and k in float32 under autocast, and v in bfloat16.
@pytest.mark.parametrize("build", [hunyuan_video, cosmos1, wan])
def test_autocast_does_to_sparse_calls_what_it_does_to_dense_ones(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidsparse.attention.SHORT_SEQUENCE", 0)
    made = build()
    with torch.autocast("cpu", torch.bfloat16):
        dense = made.latents(steps=2)
        with vidsparse.enable(made.pipe, **EVERYTHING):
            same = made.latents(steps=2)
        with vidsparse.enable(made.pipe, "compensated", **BLOCKS) as handle:
            sparse = made.latents(steps=2)
        assert handle.summary().sparse_calls
    # bfloat16 rounds outputs of attention by 2^-9; kernels differ in order.
    assert difference(same, dense) < 0.02
    assert bool(sparse.isfinite().all())


def test_one_text_serves_all_videos_of_a_batch() -> None:
    made = motif_video()
    changes = {"num_videos_per_prompt": 2, "height": 160, "width": 160}
    dense = made.latents(steps=1, changes=changes)
    torch.use_deterministic_algorithms(True)  # Fills what nobody writes with NaN.
    try:
        with vidsparse.enable(made.pipe, **EVERYTHING) as handle:
            same = made.latents(steps=1, changes=changes)
    finally:
        torch.use_deterministic_algorithms(False)
    assert handle.summary().dense_calls == {"lite looks at every tile": 6}
    for mine, theirs in zip(same, dense, strict=True):
        assert difference(mine, theirs) < 1e-5


def test_masks_of_other_numbers_of_texts_are_refused() -> None:
    layout = VideoLayout(2, 4, 4, text_after=5, text_valid=(3, 4))
    assert _for_rows(layout, 2) is layout
    with pytest.raises(UsageError, match="batch of 3 came with the masks of 2 texts"):
        _for_rows(layout, 3)
