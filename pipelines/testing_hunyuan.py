"""Tiny random HunyuanVideo pipelines beside text to video: image to video, Framepack, 1.5."""

from typing import Any

import diffusers
import torch
from torch import Tensor

from vidsparse.pipelines.testing_parts import (
    TinyPipeline,
    noise,
    picture,
    siglip,
    tiny_pipeline,
)

_SIZE: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}


def hunyuan_image_to_video() -> TinyPipeline:
    """Build HunyuanVideo image to video: the image replaces the first latent frame."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        **_SIZE, in_channels=4, out_channels=4, image_condition_type="token_replace"
    ).eval()
    pipe = diffusers.HunyuanVideoImageToVideoPipeline(
        **_parts(), text_encoder=None, tokenizer=None, image_processor=None, transformer=transformer
    )
    return tiny_pipeline(
        pipe, **_prompt(), image=picture(), num_frames=9, true_cfg_scale=2.0, guidance_scale=4.5
    )


def skyreels_image_to_video() -> TinyPipeline:
    """Build SkyReels 1: HunyuanVideo with the image as further channels."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        **_SIZE, in_channels=8, out_channels=4
    ).eval()
    pipe = diffusers.HunyuanSkyreelsImageToVideoPipeline(
        **_parts(), text_encoder=None, tokenizer=None, transformer=transformer
    )
    return tiny_pipeline(
        pipe, **_prompt(), image=picture(), num_frames=9, true_cfg_scale=2.0, guidance_scale=4.5
    )


def framepack(*, num_frames: int = 9) -> TinyPipeline:
    """Build Framepack; a section has 9 frames, 3 of them latent."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoFramepackTransformer3DModel(
        **_SIZE,
        in_channels=4,
        out_channels=4,
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    ).eval()
    pipe = diffusers.HunyuanVideoFramepackPipeline(
        **_parts(), **siglip(), text_encoder=None, tokenizer=None, transformer=transformer
    )
    return tiny_pipeline(
        pipe,
        **_prompt(),
        image=picture(),
        num_frames=num_frames,
        latent_window_size=3,
        guidance_scale=4.5,
        true_cfg_scale=2.0,
    )


def hunyuan_video15(*, image: bool = False) -> TinyPipeline:
    """Build HunyuanVideo-1.5, from text or from an image; 16 x smaller latents, no patches."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
        target_size=64,
        task_type="i2v" if image else "t2v",
    ).eval()
    build = diffusers.HunyuanVideo15Pipeline
    extra: dict[str, Any] = {}
    if image:
        build, extra = diffusers.HunyuanVideo15ImageToVideoPipeline, siglip()
    pipe = build(
        **extra,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
        vae=_vae15(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.vision_num_semantic_tokens = 16
    size = {"image": picture()} if image else {"height": 64, "width": 64}
    return TinyPipeline(pipe, {**size, **_prompts15(), "num_frames": 9})


def _prompts15() -> dict[str, Tensor]:
    inputs = {}
    for prefix, valid in (("", 7), ("negative_", 3)):
        for number, suffix in enumerate(("", "_2")):
            inputs[f"{prefix}prompt_embeds{suffix}"] = noise(1, 9, 16, seed=valid + number)
            mask = (torch.arange(9) < valid - number)[None].float()
            inputs[f"{prefix}prompt_embeds_mask{suffix}"] = mask
    return inputs


def _prompt() -> dict[str, Any]:
    inputs: dict[str, Any] = {"prompt": None}
    for prefix, valid in (("", 13), ("negative_", 4)):
        inputs[f"{prefix}prompt_embeds"] = noise(1, 16, 16, seed=valid)
        inputs[f"{prefix}pooled_prompt_embeds"] = noise(1, 8, seed=valid)
        inputs[f"{prefix}prompt_attention_mask"] = (torch.arange(16) < valid)[None].long()
    return inputs


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return {
        "vae": vae,
        "text_encoder_2": None,
        "tokenizer_2": None,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def _vae15() -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
    )
