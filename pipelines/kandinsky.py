"""Kandinsky 5 and 6: video tokens only, channels last."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.grids import grid_of


@register
class Kandinsky5Family(ModelFamily):
    """Text enters by cross-attention; checkpoints with NABLA attention are refused."""

    name = "kandinsky5"
    models: ClassVar[Models] = {
        "Kandinsky5Transformer3DModel": ("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline"),
    }
    arguments = (
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "pooled_projections",
        "visual_rope_pos",
        "text_rope_pos",
        "scale_factor",
        "sparse_params",
        "return_dict",
    )
    card = FamilyCard(
        sparsified="self_attention of every visual block; NABLA checkpoints are refused",
        text="none",
        head_sizes=(64, 128),
    )

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``self_attention`` of each visual block."""
        if transformer.config.attention_type == "nabla":
            raise UnsupportedPipelineError(
                "this Kandinsky 5 checkpoint gains nothing from sparse attention: its NABLA "
                "attention is block-sparse by training already"
            )
        return [block.self_attention for block in transformer.visual_transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, F, H, W, C) after patchify."""
        patch = transformer.config.patch_size
        return VideoLayout(*grid_of(inputs["hidden_states"], patch, "BFHWC"))


@register
class Kandinsky6Family(ModelFamily):
    """Video and audio in two streams; a reference frame behind the others is treated as video."""

    name = "kandinsky6"
    models: ClassVar[Models] = {"Kandinsky6Transformer3DModel": ("Kandinsky6TI2VAPipeline",)}
    arguments = (
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "audio_hidden_states",
        "visual_rope_pos",
        "encoder_attention_mask",
        "visual_token_type_ids",
        "return_dict",
    )
    card = FamilyCard(
        sparsified="self_attention of every video block, a reference frame as video; audio and "
        "cross-attentions untouched",
        text="none",
        head_sizes=(128,),
    )

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return the video's ``self_attention`` of each fused block."""
        blocks = transformer.visual_transformer_blocks
        return [block.video_dec_block.self_attention for block in blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, F, H, W, C) after patchify."""
        patch = transformer.config.patch_size
        return VideoLayout(*grid_of(inputs["hidden_states"], patch, "BFHWC"))
