"""HunyuanVideo-1.5: video and text attend jointly, valid text right behind the video."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import (
    FamilyCard,
    ModelFamily,
    Models,
    diffusers_version,
    register,
)
from vidsparse.pipelines.grids import grid_of
from vidsparse.pipelines.memo import TensorMemo, count_rows
from vidsparse.pipelines.processors import swapped_attention

_PROCESSOR = "HunyuanVideo15AttnProcessor2_0"


def _any(x: Tensor) -> bool:
    return bool((x != 0).any())


@register
class HunyuanVideo15Family(ModelFamily):
    """The processor's S x S mask, 12 GB for a 720p clip, gives way to a number of valid tokens.

    Image, glyph and prompt tokens are sorted by the transformer: all valid ones, then padding.
    """

    name = "hunyuan_video15"
    models: ClassVar[Models] = {
        "HunyuanVideo15Transformer3DModel": (
            "HunyuanVideo15Pipeline",
            "HunyuanVideo15ImageToVideoPipeline",
        )
    }
    arguments = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "timestep_r",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
        "image_embeds",
        "attention_kwargs",
        "return_dict",
    )
    reads = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
        "image_embeds",
    )
    card = FamilyCard(
        sparsified="attn of every block; its S x S mask becomes a length, in dense calls too",
        text="after: image, glyphs, prompt, padding",
        head_sizes=(128,),
    )
    cuts_padding = True

    def __init__(self) -> None:
        self._valid = TensorMemo(count_rows)
        self._any = TensorMemo(_any)

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn`` of each block."""
        return [block.attn for block in transformer.transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid of ``hidden_states`` (B, C, F, H, W), then what goes with it."""
        config, image = transformer.config, inputs["image_embeds"]
        texts = inputs["encoder_hidden_states"], inputs["encoder_hidden_states_2"]
        return VideoLayout(
            *grid_of(
                inputs["hidden_states"],
                (config.patch_size_t, config.patch_size, config.patch_size),
            ),
            text_after=image.shape[1] + sum(text.shape[1] for text in texts),
            text_valid=self._count_valid(inputs),
        )

    def processor_body(self, processor: type) -> Callable[..., Any] | None:
        """Return the processor's code without its mask.

        Raises:
            UnsupportedPipelineError: it is another processor than the one the code was made from.
        """
        known = list(inspect.signature(_attend_without_mask).parameters)
        found = list(inspect.signature(processor.__call__).parameters)
        if processor.__name__ != _PROCESSOR or found != known:
            raise UnsupportedPipelineError(
                f"attention processor {processor.__name__}({', '.join(found)}) of diffusers "
                f"{diffusers_version()} is not {_PROCESSOR}({', '.join(known)}); set that one, "
                "or run without sparse attention"
            )
        return _attend_without_mask

    def _count_valid(self, inputs: Mapping[str, Any]) -> tuple[int, ...]:
        image = inputs["image_embeds"]
        # The model takes an image of zeros for none.
        image_tokens = image.shape[1] if self._any(image) else 0
        prompt = self._valid(inputs["encoder_attention_mask"])
        glyphs = self._valid(inputs["encoder_attention_mask_2"])
        return tuple(image_tokens + a + b for a, b in zip(prompt, glyphs, strict=True))


def _attend_without_mask(
    self: Any,
    attn: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what ``HunyuanVideo15AttnProcessor2_0`` of diffusers 0.42 does, masks aside."""
    from diffusers.models.embeddings import apply_rotary_emb

    projections = attn.to_q, attn.to_k, attn.to_v
    q, k, v = (project(hidden_states).unflatten(2, (attn.heads, -1)) for project in projections)
    q, k = attn.norm_q(q), attn.norm_k(k)
    if image_rotary_emb is not None:
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
    text = _project_text(attn, encoder_hidden_states)
    q, k, v = (torch.cat(pair, dim=1) for pair in zip((q, k, v), text, strict=True))
    out = swapped_attention(q, k, v).flatten(2, 3).to(q.dtype)
    end = hidden_states.shape[1]
    video = attn.to_out[1](attn.to_out[0](out[:, :end]))
    return video, attn.to_add_out(out[:, end:])


def _project_text(attn: Any, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
    q, k, v = (project(text).unflatten(2, (attn.heads, -1)) for project in projections)
    if attn.norm_added_q is not None:
        q = attn.norm_added_q(q)
    if attn.norm_added_k is not None:
        k = attn.norm_added_k(k)
    return q, k, v
