"""Helios: chunks of a long video, with history frames in front of the running chunk."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.grids import grid_of, tokens_of

_HISTORY = {"short": 1, "mid": 2, "long": 4}


@register
class HeliosFamily(ModelFamily):
    """Long, mid and short history at 1/4, 1/2 and full resolution, then the chunk.

    History tokens are kept as text is: every query sees them, and they see everything. Each chunk
    is a generation, and so is each stage of the pyramid: dense steps are counted in each.
    """

    name = "helios"
    models: ClassVar[Models] = {
        "HeliosTransformer3DModel": ("HeliosPipeline", "HeliosPyramidPipeline")
    }
    arguments = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "indices_hidden_states",
        "indices_latents_history_short",
        "indices_latents_history_mid",
        "indices_latents_history_long",
        "latents_history_short",
        "latents_history_mid",
        "latents_history_long",
        "return_dict",
        "attention_kwargs",
    )
    card = FamilyCard(
        sparsified="attn1 of every block; history tokens are kept",
        text="none; history before",
        head_sizes=(128,),
    )

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the history, then the grid of ``hidden_states`` (B, C, F, H, W)."""
        patch = transformer.config.patch_size
        history = sum(
            tokens_of(inputs.get(f"latents_history_{name}"), [scale * p for p in patch])
            for name, scale in _HISTORY.items()
            if inputs.get(f"indices_latents_history_{name}") is not None
        )
        return VideoLayout(*grid_of(inputs["hidden_states"], patch), text_before=history)
