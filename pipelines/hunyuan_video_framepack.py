"""HunyuanVideo-Framepack: sections of a long video, with history frames in front."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.grids import grid_of, tokens_of
from vidsparse.pipelines.memo import TensorMemo, count_rows

_HISTORY = {"clean": (1, 2, 2), "history_2x": (2, 4, 4), "history_4x": (4, 8, 8)}


@register
class HunyuanVideoFramepackFamily(ModelFamily):
    """History at three resolutions, the running section, the image's tokens, the text.

    History tokens are kept as text is. One row comes without padding, several with a mask.
    """

    name = "hunyuan_video_framepack"
    models: ClassVar[Models] = {
        "HunyuanVideoFramepackTransformer3DModel": ("HunyuanVideoFramepackPipeline",)
    }
    arguments = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "pooled_projections",
        "image_embeds",
        "indices_latents",
        "guidance",
        "latents_clean",
        "indices_latents_clean",
        "latents_history_2x",
        "indices_latents_history_2x",
        "latents_history_4x",
        "indices_latents_history_4x",
        "attention_kwargs",
        "return_dict",
    )
    reads = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "image_embeds",
    )
    card = FamilyCard(
        sparsified="attn of the double- and single-stream blocks; history tokens are kept",
        text="after, behind the image's tokens; history before",
        head_sizes=(128,),
    )

    def __init__(self) -> None:
        self._valid = TensorMemo(count_rows)

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn`` of the double-stream, then of the single-stream blocks."""
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        return [block.attn for block in blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the history, the grid of ``hidden_states`` (B, C, F, H, W), image and text."""
        config = transformer.config
        patch = config.patch_size_t, config.patch_size, config.patch_size
        image = inputs["image_embeds"].shape[1]
        valid = tuple(image + n for n in self._valid(inputs["encoder_attention_mask"]))
        padded = len(valid) > 1
        return VideoLayout(
            *grid_of(inputs["hidden_states"], patch),
            text_before=_history(inputs),
            text_after=image + inputs["encoder_hidden_states"].shape[1] if padded else valid[0],
            text_valid=valid if padded else None,
        )


def _history(inputs: Mapping[str, Any]) -> int:
    return sum(
        tokens_of(inputs.get(f"latents_{name}"), patch)
        for name, patch in _HISTORY.items()
        if inputs.get(f"indices_latents_{name}") is not None
    )
