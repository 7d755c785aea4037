from collections.abc import Callable
from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing_more

LARGE = {"height": 192, "width": 192}


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("padded_in_front", [False, True])
def test_contract(image: bool, padded_in_front: bool, contract: Callable[..., Any]) -> None:
    tiny = testing_more.motif_video(image=image, padded_in_front=padded_in_front)
    family = contract(tiny)
    family.check_dense()
    spy, images = family.spy, 16 if image else 0
    layouts = {(s.branch, s.layer, o) for s, o in zip(spy.sites, spy.layouts, strict=True)}
    # 13 and 4 tokens of the prompts; the decoding block has two copies of the video.
    assert layouts == {
        (branch, layer, layout)
        for branch, valid in enumerate((13, 4))
        for layer, layout in enumerate(
            [VideoLayout(3, 2, 2, 0, images + 16, (images + valid,))] * 2 + [VideoLayout(6, 2, 2)]
        )
    }
    family.check_marker()
    family.check_sparse(LARGE)
    family.check_disabled()


def test_sparse_video_does_not_depend_on_the_side_of_the_padding() -> None:
    videos = []
    for padded_in_front in (False, True):
        tiny = testing_more.motif_video(padded_in_front=padded_in_front)
        # The text has no positions, so its order does not matter, but who is padding does.
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            text = tiny.inputs[name]
            tiny.inputs[name] = text.flip(1) if padded_in_front else text
        with vidsparse.enabled(tiny.pipe, "random", density=0.5, dense_steps=0):
            videos.append(tiny.latents(changes=LARGE))
    assert float((videos[0] - videos[1]).abs().max() / videos[0].abs().max()) < 1e-5
    assert torch.isfinite(videos[0]).all()


@pytest.mark.parametrize("masked", [False, True])
def test_as_much_text_as_video_loses_no_copy_of_the_video(masked: bool) -> None:
    transformer = testing_more.motif_video().pipe.transformer
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 33, 1, 32, 32, generator=generator),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": torch.randn(1, 256, 16, generator=generator),
        "encoder_attention_mask": (torch.arange(256) < 40)[None] if masked else None,
    }
    with torch.no_grad():
        expected = transformer(**inputs).sample
        # Nothing is below a threshold of 0: every block is kept.
        with vidsparse.enabled(
            transformer, "lite", dense_steps=0, parameters={"threshold": 0.0}
        ) as handle:
            found = transformer(**inputs).sample
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    encoding = {"attention mask": 2} if masked else {}
    every = {"lite looks at every tile": 3 - sum(encoding.values())}
    assert handle.summary().dense_calls == {**encoding, **every}
