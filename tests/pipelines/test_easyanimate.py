from collections.abc import Callable
from typing import Any

import pytest
import torch

from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing_more
from vidsparse.pipelines.easyanimate import EasyAnimateFamily


@pytest.mark.parametrize("kind", ["", "Inpaint"])
def test_contract(kind: str, contract: Callable[..., Any]) -> None:
    family = contract(testing_more.easyanimate(kind=kind))
    assert family.check_dense() == VideoLayout(3, 2, 2, text_before=16)
    # Negative and positive prompt are rows of one forward.
    assert {shape[0] for shape in family.spy.shapes} == {2}
    assert family.spy.places == [(0, 0, 0), (0, 1, 0)]
    family.check_marker()
    family.check_sparse({"height": 160, "width": 160, "num_images_per_prompt": 2})
    family.check_disabled()


def test_control_is_further_channels_and_a_second_text_further_tokens() -> None:
    transformer = testing_more.easyanimate(kind="Control").pipe.transformer
    inputs = {
        "hidden_states": torch.zeros(2, 4, 3, 6, 8),
        "control_latents": torch.zeros(2, 8, 3, 6, 8),
        "encoder_hidden_states": torch.zeros(2, 16, 16),
        "encoder_hidden_states_t5": torch.zeros(2, 5, 16),
    }
    layout = EasyAnimateFamily().layout(transformer, inputs)
    assert layout == VideoLayout(3, 3, 4, text_before=21)
