from collections.abc import Callable
from typing import Any

import pytest
import torch

from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing_ltx
from vidsparse.pipelines.attach import attach
from vidsparse.pipelines.ltx2 import LTX2Family

# A key frame or a reference frame has 256 tokens of its own.
BUILD = {"": 0, "ImageToVideo": 0, "Condition": 256, "InContext": 256, "HDR": 256}


@pytest.mark.parametrize("kind", BUILD)
def test_contract(kind: str, contract: Callable[..., Any]) -> None:
    family = contract(testing_ltx.ltx2(kind=kind, guided=not kind))
    assert family.check_dense() == VideoLayout(5, 16, 16, text_after=BUILD[kind])
    # Negative and positive prompt are rows of one forward.
    assert {shape[0] for shape in family.spy.shapes} == {2}
    assert family.spy.places == [(0, 0, 0), (0, 1, 0)]
    # Two steps with a forward for each of two guidances; one skips attention in a layer of two.
    perturbed = {} if kind else {"perturbed guidance": 6}
    assert dict(family.spy.recorder.dense) == perturbed
    family.check_marker("BSC", (1, 1, 1))
    if kind:
        # The guidances of the other kind mix all latents.
        family.check_output()
    family.check_sparse({"num_frames": 5})
    family.check_disabled()


def test_audio_and_cross_attention_are_left_alone(spy: Any) -> None:
    transformer = testing_ltx.ltx2().pipe.transformer
    block = transformer.transformer_blocks[0]
    others = [m for m in block.modules() if hasattr(m, "processor") and m is not block.attn1]
    before = [module.processor for module in others]
    attachment = attach(transformer, spy)
    assert len(others) == 5
    assert all(a is m.processor for a, m in zip(before, others, strict=True))
    attachment.detach()


def test_mask_of_references_stays_dense(spy: Any) -> None:
    tiny = testing_ltx.ltx2(kind="InContext", guided=False)
    weak = {"conditioning_attention_strength": 0.5}
    expected = tiny.latents(steps=1, changes=weak)
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.latents(steps=1, changes=weak), expected)
    attachment.detach()
    assert dict(spy.recorder.dense) == {"attention mask": 2}


@pytest.mark.parametrize(
    ("frames", "message"), [(None, "does not tell its transformer"), (9, "fewer than its grid")]
)
def test_unknown_grids_are_refused(frames: int | None, message: str) -> None:
    inputs = {"hidden_states": torch.zeros(1, 4, 4), "num_frames": frames, "height": 2, "width": 2}
    with pytest.raises(UnsupportedPipelineError, match=message):
        LTX2Family().layout(None, inputs)
