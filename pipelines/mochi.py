"""Mochi: video and text attend jointly, one batch row at a time, without padding."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import ModelFamily, register


@register
class MochiFamily(ModelFamily):
    """The processor gathers each row's valid text behind the video, so S differs between rows."""

    name = "mochi"
    transformer_classes = ("MochiTransformer3DModel",)
    pipelines = ("MochiPipeline",)
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
