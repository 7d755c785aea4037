"""HunyuanVideo: video and text attend jointly, text behind the video, padded and masked."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.grids import grid_of
from vidsparse.pipelines.memo import TensorMemo, count_rows


@register
class HunyuanVideoFamily(ModelFamily):
    """Two lists of blocks, one sequence; the model masks all but each row's first text tokens."""

    name = "hunyuan_video"
    models: ClassVar[Models] = {
        "HunyuanVideoTransformer3DModel": (
            "HunyuanVideoPipeline",
            "HunyuanVideoImageToVideoPipeline",
            "HunyuanSkyreelsImageToVideoPipeline",
        )
    }
    arguments = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "pooled_projections",
        "guidance",
        "attention_kwargs",
        "return_dict",
    )
    reads = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask")
    card = FamilyCard(
        sparsified="attn of the double- and single-stream blocks; padding is cut",
        text="after, padded and masked",
        head_sizes=(128,),
        preset="svg-hunyuan-720p",
    )

    def __init__(self) -> None:
        self._valid = TensorMemo(count_rows)

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn`` of the double-stream, then of the single-stream blocks."""
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        return [block.attn for block in blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, C, F, H, W), then the text with its padding."""
        config = transformer.config
        patch = config.patch_size_t, config.patch_size, config.patch_size
        return VideoLayout(
            *grid_of(inputs["hidden_states"], patch),
            text_after=inputs["encoder_hidden_states"].shape[1],
            text_valid=self._valid(inputs["encoder_attention_mask"]),
        )
