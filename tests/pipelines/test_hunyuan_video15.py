from collections.abc import Callable
from typing import Any

import pytest
import torch

from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing_hunyuan
from vidsparse.pipelines.attach import attach
from vidsparse.pipelines.hunyuan_video15 import HunyuanVideo15Family

# Two steps of two layers; the sums over keys run in another order without the masked ones, which
# costs 4.2e-7 of the largest value: 3.5 units in the last place.
ROUNDING = 1e-6
LARGE = {"height": 160, "width": 160}


@pytest.mark.parametrize(("image", "valid"), [(False, 0), (True, 16)])
def test_contract(image: bool, valid: int, contract: Callable[..., Any]) -> None:
    tiny = testing_hunyuan.hunyuan_video15(image=image)
    family = contract(tiny, tolerance=ROUNDING)
    layout = family.check_dense()
    assert (layout.grid, layout.text_before, layout.text_after) == ((3, 4, 4), 0, 34)
    spy = family.spy
    rows = {(s.branch, o.text_valid) for s, o in zip(spy.sites, spy.layouts, strict=True)}
    assert rows == {(0, (valid + 13,)), (1, (valid + 5,))}
    assert spy.places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    family.check_marker(patch=(1, 1, 1))
    # From an image, height and width follow from a target size.
    tiny.pipe.target_size = 160
    family.check_sparse({} if image else LARGE)
    tiny.pipe.target_size = 64
    family.check_disabled()


@torch.no_grad()
def test_one_call_equals_the_masked_one_within_an_ulp(spy: Any) -> None:
    transformer = testing_hunyuan.hunyuan_video15().pipe.transformer
    attention = transformer.transformer_blocks[0].attn
    hidden, text = torch.randn(2, 2, 20, 32, generator=torch.Generator().manual_seed(0)).unbind()
    valid = torch.arange(20) < torch.tensor([[13], [20]])
    arguments = {"hidden_states": hidden, "encoder_hidden_states": text, "attention_mask": valid}
    expected = attention(**arguments)[0]
    attachment = attach(transformer, spy)
    running = attention.processor.vidsparse_layer.transformer
    running.layout = VideoLayout(5, 2, 2, text_after=20, text_valid=(13, 20))
    running.rows = 2
    found = attention(**arguments)[0]
    attachment.detach()
    ulp = torch.finfo(torch.float32).eps * expected.abs().max()
    assert float((found - expected).abs().max()) <= float(ulp)


def test_no_mask_of_all_pairs_is_built(spy: Any) -> None:
    tiny = testing_hunyuan.hunyuan_video15()
    attachment = attach(tiny.pipe, spy)
    masks = []
    real = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
        masks.append(attn_mask)
        return real(*args, attn_mask=attn_mask, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        tiny.latents(steps=1)
    attachment.detach()
    # The text refiner's masks are over the text alone.
    assert max(mask.shape[-1] for mask in masks if mask is not None) < 82
    assert len(masks) >= 4


def test_foreign_processor_is_refused() -> None:
    class Other:
        def __call__(self, attn: Any, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states

    with pytest.raises(UnsupportedPipelineError, match=r"processor Other\(self, attn, hidden_st"):
        HunyuanVideo15Family().processor_body(Other)
