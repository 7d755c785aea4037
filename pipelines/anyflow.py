"""AnyFlow: Wan's structure, distilled for any number of steps."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.grids import grid_of


@register
class AnyFlowFamily(ModelFamily):
    """Video tokens only; guidance in one batch, the negative prompt first."""

    name = "anyflow"
    models: ClassVar[Models] = {"AnyFlowTransformer3DModel": ("AnyFlowPipeline",)}
    arguments = (
        "hidden_states",
        "timestep",
        "r_timestep",
        "encoder_hidden_states",
        "encoder_hidden_states_image",
        "attention_kwargs",
        "return_dict",
    )
    card = FamilyCard(sparsified="attn1 of every block", text="none", head_sizes=(128,))

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, F, C, H, W) after patchify."""
        patch = transformer.config.patch_size
        return VideoLayout(*grid_of(inputs["hidden_states"], patch, "BFCHW"))
