"""LTX-2: video and audio in two streams; only the video's attention to itself is touched."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.perturbation import REASON


@register
class LTX2Family(ModelFamily):
    """The video is packed; tokens of key frames and references stand behind it, kept as text is.

    Forwards that only serve guidance (values for attention, modalities apart) stay dense.
    """

    name = "ltx2"
    models: ClassVar[Models] = {
        "LTX2VideoTransformer3DModel": (
            "LTX2Pipeline",
            "LTX2ImageToVideoPipeline",
            "LTX2ConditionPipeline",
            "LTX2InContextPipeline",
            "LTX2HDRPipeline",
        )
    }
    arguments = (
        "hidden_states",
        "audio_hidden_states",
        "encoder_hidden_states",
        "audio_encoder_hidden_states",
        "timestep",
        "audio_timestep",
        "sigma",
        "audio_sigma",
        "encoder_attention_mask",
        "audio_encoder_attention_mask",
        "num_frames",
        "height",
        "width",
        "fps",
        "audio_num_frames",
        "video_coords",
        "audio_coords",
        "isolate_modalities",
        "spatio_temporal_guidance_blocks",
        "perturbation_mask",
        "use_cross_timestep",
        "attention_kwargs",
        "video_self_attention_mask",
        "video_keyframes_mask",
        "return_dict",
    )
    reads = ("hidden_states", "timestep", "num_frames", "height", "width")
    card = FamilyCard(
        sparsified="attn1 of every block (video to video); audio and cross-attentions untouched; "
        "dense under a self-attention mask and in perturbed passes",
        text="none; condition tokens after",
        head_sizes=(128,),
    )

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid given with ``hidden_states`` (B, S, C), then the other tokens."""
        names = "num_frames", "height", "width"
        if any(inputs.get(name) is None for name in names):
            raise UnsupportedPipelineError(
                "this LTX-2 pipeline does not tell its transformer num_frames, height and width; "
                "run it without sparse attention"
            )
        video = VideoLayout(*(inputs[name] for name in names))
        others = inputs["hidden_states"].shape[1] - video.video_tokens
        if others < 0:
            raise UnsupportedPipelineError(
                f"this LTX-2 pipeline gives its transformer {inputs['hidden_states'].shape[1]} "
                f"tokens, fewer than its grid {video.grid} has; run it without sparse attention"
            )
        return VideoLayout(*video.grid, text_after=others)

    def dense_reason(self, inputs: Mapping[str, Any]) -> str | None:
        """Name the passes of spatio-temporal and modality guidance."""
        perturbed = inputs.get("spatio_temporal_guidance_blocks") or inputs.get(
            "isolate_modalities"
        )
        return REASON if perturbed else None
