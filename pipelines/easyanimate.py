"""EasyAnimate 5.1: video and text attend jointly, text in front of the video."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.grids import grid_of


@register
class EasyAnimateFamily(ModelFamily):
    """One or two texts without a mask; guidance in one batch, the negative prompt first.

    EasyAnimateControlPipeline is not listed: in diffusers 0.42 it fails before it denoises. Its
    control latents are further channels, which change no layout.
    """

    name = "easyanimate"
    models: ClassVar[Models] = {
        "EasyAnimateTransformer3DModel": (
            "EasyAnimatePipeline",
            "EasyAnimateInpaintPipeline",
        )
    }
    arguments = (
        "hidden_states",
        "timestep",
        "timestep_cond",
        "encoder_hidden_states",
        "encoder_hidden_states_t5",
        "inpaint_latents",
        "control_latents",
        "return_dict",
    )
    reads = ("hidden_states", "timestep", "encoder_hidden_states")
    card = FamilyCard(sparsified="attn1 of every block", text="before", head_sizes=(64,))

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the texts, then the grid of ``hidden_states`` (B, C, F, H, W)."""
        patch = transformer.config.patch_size
        texts = inputs["encoder_hidden_states"], inputs.get("encoder_hidden_states_t5")
        return VideoLayout(
            *grid_of(inputs["hidden_states"], (1, patch, patch)),
            text_before=sum(text.shape[1] for text in texts if text is not None),
        )
