"""Motif-Video: video, image and text attend jointly, then two copies of the video."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.grids import grid_of
from vidsparse.pipelines.memo import TensorMemo, count_rows
from vidsparse.pipelines.text_order import order_of


@register
class MotifVideoFamily(ModelFamily):
    """Text behind the video, padded and masked; the last single-stream blocks have none.

    Those decode: the video as it entered stands in front of the video as encoded. The second copy
    is treated as further frames of the first.
    """

    name = "motif_video"
    models: ClassVar[Models] = {
        "MotifVideoTransformer3DModel": ("MotifVideoPipeline", "MotifVideoImage2VideoPipeline")
    }
    arguments = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "image_embeds",
        "attention_kwargs",
        "return_dict",
    )
    reads = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask")
    card = FamilyCard(
        sparsified="attn of the double- and single-stream blocks; the decoder's second copy of "
        "the video as further frames",
        text="after: image, prompt, padding",
        head_sizes=(128,),
    )

    def __init__(self) -> None:
        self._valid = TensorMemo(count_rows)
        self._order = TensorMemo(order_of)

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn`` of the double-stream, then of the single-stream blocks."""
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        return [block.attn for block in blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, C, F, H, W), then image and text."""
        config, image = transformer.config, inputs.get("image_embeds")
        patch = config.patch_size_t, config.patch_size, config.patch_size
        images = 0 if image is None else image.shape[1]
        mask = inputs.get("encoder_attention_mask")
        return VideoLayout(
            *grid_of(inputs["hidden_states"], patch),
            text_after=images + inputs["encoder_hidden_states"].shape[1],
            text_valid=None if mask is None else tuple(images + n for n in self._valid(mask)),
        )

    def text_order(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return the order of image and prompt; Gemma's tokenizer pads in front."""
        mask, image = inputs.get("encoder_attention_mask"), inputs.get("image_embeds")
        order = None if mask is None else self._order(mask)
        if order is None or image is None:
            return order
        images = torch.arange(image.shape[1], device=order.device).expand(len(order), -1)
        return torch.cat((images, order + image.shape[1]), dim=1)

    def call_layout(self, layout: VideoLayout, num_tokens: int) -> VideoLayout:
        """Return the layout of an encoding call, or of one over two copies of the video.

        With as much text as video both are of one size, but only encoding calls have a mask. If
        one was given, both get the second layout, which does not explain the mask: encoding calls
        stay dense. If none was, both get the first, and the second copy is treated as text.
        """
        alike = num_tokens == layout.num_tokens and layout.text_valid is None
        if num_tokens != 2 * layout.video_tokens or alike:
            return layout
        return replace(layout, frames=2 * layout.frames, text_after=0, text_valid=None)
