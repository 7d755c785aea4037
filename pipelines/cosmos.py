"""Cosmos 1, 2 and 2.5: video tokens only."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.grids import grid_of


@register
class CosmosFamily(ModelFamily):
    """Text enters by cross-attention; condition frames are noisy frames' neighbours in the grid.

    The ControlNet of Cosmos 2.5 Transfer is left as it is.
    """

    name = "cosmos"
    models: ClassVar[Models] = {
        "CosmosTransformer3DModel": (
            "CosmosTextToWorldPipeline",
            "CosmosVideoToWorldPipeline",
            "Cosmos2TextToImagePipeline",
            "Cosmos2VideoToWorldPipeline",
            "Cosmos2_5_PredictBasePipeline",
            "Cosmos2_5_TransferPipeline",
        )
    }
    arguments = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "block_controlnet_hidden_states",
        "attention_mask",
        "fps",
        "condition_mask",
        "padding_mask",
        "return_dict",
    )
    card = FamilyCard(
        sparsified="attn1 of every block, condition frames as video; ControlNet untouched",
        text="none",
        head_sizes=(128,),
        preset="svg-cosmos-14b",
    )
    time_scale = 1.0

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, C, F, H, W) after patchify."""
        return VideoLayout(*grid_of(inputs["hidden_states"], transformer.config.patch_size))
