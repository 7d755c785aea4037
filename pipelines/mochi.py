"""Mochi: video and text attend jointly, one batch row at a time, without padding."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register


@register
class MochiFamily(ModelFamily):
    """The processor gathers each row's valid text behind the video, so S differs between rows."""

    name = "mochi"
    models: ClassVar[Models] = {"MochiTransformer3DModel": ("MochiPipeline",)}
    arguments = (
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
        "attention_kwargs",
        "return_dict",
    )
    reads = ("hidden_states", "timestep", "encoder_hidden_states")
    card = FamilyCard(
        sparsified="attn1 of every block, one batch row at a time",
        text="after, padding cut by the model",
        head_sizes=(128,),
    )
    time_rises = True

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, C, F, H, W), then the text with its padding."""
        frames, height, width = inputs["hidden_states"].shape[2:]
        patch = transformer.config.patch_size
        return VideoLayout(
            frames=frames,
            height=height // patch,
            width=width // patch,
            text_after=inputs["encoder_hidden_states"].shape[1],
        )

    def call_layout(self, layout: VideoLayout, num_tokens: int) -> VideoLayout:
        """Return the layout of one row, whose text is what its tokens leave beside the video."""
        return replace(layout, text_after=num_tokens - layout.video_tokens)
