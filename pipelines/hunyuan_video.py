"""HunyuanVideo: video and text attend jointly, text behind the video, padded and masked."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import ModelFamily, register
from vidsparse.pipelines.memo import TensorMemo


def _count_rows(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(n) for n in mask.sum(dim=1).tolist())


@register
class HunyuanVideoFamily(ModelFamily):
    """Two lists of blocks, one sequence; the model masks all but each row's first text tokens."""

    name = "hunyuan_video"
    transformer_classes = ("HunyuanVideoTransformer3DModel",)
    pipelines = ("HunyuanVideoPipeline",)

    def __init__(self) -> None:
        self._valid = TensorMemo(_count_rows)

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn`` of the double-stream, then of the single-stream blocks."""
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        return [block.attn for block in blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, C, F, H, W), then the text with its padding."""
        frames, height, width = inputs["hidden_states"].shape[2:]
        config = transformer.config
        return VideoLayout(
            frames=frames // config.patch_size_t,
            height=height // config.patch_size,
            width=width // config.patch_size,
            text_after=inputs["encoder_hidden_states"].shape[1],
            text_valid=self._valid(inputs["encoder_attention_mask"]),
        )
