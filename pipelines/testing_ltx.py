"""Tiny random LTX-Video pipelines beside text to video, and LTX-2."""

from typing import Any

import diffusers
import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

from vidsparse.pipelines.testing import ltx_transformer, ltx_vae
from vidsparse.pipelines.testing_parts import (
    TinyPipeline,
    noise,
    picture,
    t5_encoder,
    t5_tokenizer,
    tiny_pipeline,
)


def ltx_image_to_video() -> TinyPipeline:
    """Build LTX-Video image to video: times per token, the first frame is the image."""
    pipe = diffusers.LTXImageToVideoPipeline(
        **_ltx_parts(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler()
    )
    return tiny_pipeline(pipe, **_prompts(32), image=picture(), num_frames=17, guidance_scale=3.0)


def ltx_long() -> TinyPipeline:
    """Build LTX-Video for long videos of several prompts: overlapping windows."""
    pipe = diffusers.LTXI2VLongMultiPromptPipeline(
        **_ltx_parts(), scheduler=diffusers.LTXEulerAncestralRFScheduler()
    )
    pipe.register_modules(text_encoder=t5_encoder(), tokenizer=t5_tokenizer())
    return tiny_pipeline(
        pipe, prompt="one | two", num_frames=17, temporal_tile_size=12, temporal_overlap=4
    )


def ltx2(*, kind: str = "", guided: bool = True) -> TinyPipeline:
    """Build LTX-2 with heads for gating and perturbation.

    Args:
        kind: "", "ImageToVideo", "Condition" (a key frame), "InContext" or "HDR" (a reference
            video), as in the pipeline's name.
        guided: also by spatio-temporal and modality guidance, a forward each.
    """
    torch.manual_seed(0)
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=16,
        rope_double_precision=False,
        gated_attn=True,
        perturbed_attn=True,
    ).eval()
    build = getattr(diffusers, f"LTX2{kind}Pipeline")
    pipe = build(**_ltx2_parts(), transformer=transformer)
    inputs: dict[str, Any] = {**_prompts(32), "num_frames": 9, "guidance_scale": 3.0}
    inputs |= {"spatio_temporal_guidance_blocks": [1]}
    if not guided:
        inputs |= dict.fromkeys(("stg_scale", "audio_stg_scale"), 0.0)
        inputs |= dict.fromkeys(("modality_scale", "audio_modality_scale"), 1.0)
    if kind == "HDR":
        inputs = {name: value for name, value in inputs.items() if "audio" not in name}
        inputs["reference_conditions"] = LTX2HDRReferenceCondition(frames=[picture()])
    # Without the compression that models the codec: it needs another package.
    if kind == "ImageToVideo":
        inputs |= {"image": picture(), "image_crf": 0}
    if kind == "Condition":
        frame = LTX2VideoCondition(frames=picture(), index=1, strength=1.0, crf=0)
        inputs["conditions"] = frame
    if kind == "InContext":
        inputs["reference_conditions"] = LTX2ReferenceCondition(frames=[picture()])
    return tiny_pipeline(pipe, **inputs)


def _prompts(width: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {"prompt": None}
    for seed, name in enumerate(("prompt", "negative_prompt")):
        inputs[f"{name}_embeds"] = noise(1, 16, width, seed=seed)
        inputs[f"{name}_attention_mask"] = torch.ones(1, 16, dtype=torch.long)
    return inputs


def _ltx_parts() -> dict[str, Any]:
    return {
        "vae": ltx_vae(),
        "transformer": ltx_transformer(),
        "text_encoder": None,
        "tokenizer": None,
    }


def _ltx2_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        upsample_type=("spatial",),
        patch_size=1,
        patch_size_t=1,
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        rope_double_precision=False,
    )
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": vae,
        "audio_vae": audio_vae,
        "connectors": connectors.eval(),
        **dict.fromkeys(("text_encoder", "tokenizer", "vocoder")),
    }
