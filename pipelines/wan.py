"""Wan 2.1 and 2.2 and the models built like it: Animate, VACE, Lucy, ChronoEdit, SkyReels-V2."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.grids import grid_of


@register
class WanFamily(ModelFamily):
    """Video tokens only; text and image enter by cross-attention, which stays as it is.

    Reference images are latent frames in front of the others (VACE, Animate) and are treated as
    video.
    """

    name = "wan"
    models: ClassVar[Models] = {
        "WanTransformer3DModel": (
            "WanPipeline",
            "WanImageToVideoPipeline",
            "WanVideoToVideoPipeline",
            "LucyEditPipeline",
        ),
        "WanVACETransformer3DModel": ("WanVACEPipeline",),
        "WanAnimateTransformer3DModel": ("WanAnimatePipeline",),
        "ChronoEditTransformer3DModel": ("ChronoEditPipeline",),
        "SkyReelsV2Transformer3DModel": (
            "SkyReelsV2Pipeline",
            "SkyReelsV2ImageToVideoPipeline",
            "SkyReelsV2DiffusionForcingPipeline",
            "SkyReelsV2DiffusionForcingImageToVideoPipeline",
            "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        ),
    }
    arguments = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_hidden_states_image",
        "control_hidden_states",
        "control_hidden_states_scale",
        "pose_hidden_states",
        "face_pixel_values",
        "motion_encode_batch_size",
        "enable_diffusion_forcing",
        "fps",
        "return_dict",
        "attention_kwargs",
    )
    card = FamilyCard(
        sparsified="attn1 of every block, reference frames as video; dense under the causal mask "
        "of SkyReels-V2's causal_block_size",
        text="none",
        head_sizes=(128,),
        preset="svg-wan-t2v-720p",
    )

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block; VACE's control blocks run before the others."""
        blocks = [*getattr(transformer, "vace_blocks", ()), *transformer.blocks]
        return [block.attn1 for block in blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, C, F, H, W) after patchify."""
        return VideoLayout(*grid_of(inputs["hidden_states"], transformer.config.patch_size))
