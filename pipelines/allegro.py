"""Allegro: video tokens only, heads of 96 channels."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.grids import grid_of


@register
class AllegroFamily(ModelFamily):
    """Text enters by cross-attention; guidance in one batch, the negative prompt first."""

    name = "allegro"
    models: ClassVar[Models] = {"AllegroTransformer3DModel": ("AllegroPipeline",)}
    arguments = (
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "attention_mask",
        "encoder_attention_mask",
        "image_rotary_emb",
        "return_dict",
    )
    card = FamilyCard(sparsified="attn1 of every block", text="none", head_sizes=(96,))

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, C, F, H, W) after patchify."""
        config = transformer.config
        patch = config.patch_size_t, config.patch_size, config.patch_size
        return VideoLayout(*grid_of(inputs["hidden_states"], patch))
