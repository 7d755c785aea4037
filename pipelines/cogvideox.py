"""CogVideoX 1.0 and 1.5: video and text attend jointly, text in front of the video."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import ModelFamily, register


@register
class CogVideoXFamily(ModelFamily):
    """Text of fixed length without a mask; guidance in one batch, the negative prompt first."""

    name = "cogvideox"
    transformer_classes = ("CogVideoXTransformer3DModel",)
    pipelines = ("CogVideoXPipeline",)

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the text, then the grid of ``hidden_states`` (B, F, C, H, W)."""
        _, frames, _, height, width = inputs["hidden_states"].shape
        patch, frame_patch = transformer.config.patch_size, transformer.config.patch_size_t or 1
        return VideoLayout(
            frames=-(-frames // frame_patch),
            height=height // patch,
            width=width // patch,
            text_before=inputs["encoder_hidden_states"].shape[1],
        )
