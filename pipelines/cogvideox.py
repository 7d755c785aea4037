"""CogVideoX 1.0 and 1.5 and ConsisID: video and text attend jointly, text in front."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register


@register
class CogVideoXFamily(ModelFamily):
    """Text of fixed length without a mask; guidance in one batch, the negative prompt first.

    Images and control videos are further channels; ConsisID's faces enter by cross-attention.
    """

    name = "cogvideox"
    models: ClassVar[Models] = {
        "CogVideoXTransformer3DModel": (
            "CogVideoXPipeline",
            "CogVideoXImageToVideoPipeline",
            "CogVideoXVideoToVideoPipeline",
            "CogVideoXFunControlPipeline",
        ),
        "ConsisIDTransformer3DModel": ("ConsisIDPipeline",),
    }
    arguments = (
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "timestep_cond",
        "ofs",
        "image_rotary_emb",
        "attention_kwargs",
        "id_cond",
        "id_vit_hidden",
        "return_dict",
    )
    reads = ("hidden_states", "timestep", "encoder_hidden_states")
    card = FamilyCard(
        sparsified="attn1 of every block",
        text="before",
        head_sizes=(64,),
        preset="svg-cogvideox-1.5",
    )

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the text, then the grid of ``hidden_states`` (B, F, C, H, W)."""
        _, frames, _, height, width = inputs["hidden_states"].shape
        config = transformer.config
        return VideoLayout(
            frames=-(-frames // (getattr(config, "patch_size_t", None) or 1)),
            height=height // config.patch_size,
            width=width // config.patch_size,
            text_before=inputs["encoder_hidden_states"].shape[1],
        )
