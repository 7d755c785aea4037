"""Wan 2.1 and 2.2: text, image and video to video, one or two experts, and VACE."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import ModelFamily, register


@register
class WanFamily(ModelFamily):
    """Video tokens only; text and image enter by cross-attention, which stays as it is."""

    name = "wan"
    transformer_classes = ("WanTransformer3DModel", "WanVACETransformer3DModel")
    pipelines = (
        "WanPipeline",
        "WanImageToVideoPipeline",
        "WanVideoToVideoPipeline",
        "WanVACEPipeline",
    )

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block; VACE's control blocks run before the others."""
        blocks = [*getattr(transformer, "vace_blocks", ()), *transformer.blocks]
        return [block.attn1 for block in blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, C, F, H, W) after patchify."""
        size = inputs["hidden_states"].shape[2:]
        patch = transformer.config.patch_size
        frames, height, width = (n // p for n, p in zip(size, patch, strict=True))
        return VideoLayout(frames=frames, height=height, width=width)
