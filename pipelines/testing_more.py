"""Tiny random pipelines of Allegro, AnyFlow, EasyAnimate, Helios and Motif-Video."""

from dataclasses import replace
from typing import Any

import diffusers
import torch
import transformers

from vidsparse.pipelines.testing import WAN_SIZE, wan_parts, wan_prompt, wan_vae
from vidsparse.pipelines.testing_parts import TinyPipeline, noise, picture, siglip, tiny_pipeline


def allegro() -> TinyPipeline:
    """Build Allegro with heads of 24 channels; the released model has 96."""
    torch.manual_seed(0)
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=2,
        cross_attention_dim=48,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=24,
    ).eval()
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
    )
    pipe = diffusers.AllegroPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.DDIMScheduler(),
    )
    inputs = {**_embeddings(24), "negative_prompt": None, "num_frames": 12}
    return tiny_pipeline(pipe, **inputs, guidance_scale=6.0)


def anyflow() -> TinyPipeline:
    """Build AnyFlow."""
    torch.manual_seed(0)
    transformer = diffusers.AnyFlowTransformer3DModel(
        **WAN_SIZE, in_channels=16, num_layers=2
    ).eval()
    parts = {**wan_parts(), "scheduler": diffusers.FlowMapEulerDiscreteScheduler(shift=3.0)}
    pipe = diffusers.AnyFlowPipeline(**parts, transformer=transformer)
    return tiny_pipeline(pipe, **wan_prompt(), num_frames=9, guidance_scale=3.0)


def easyanimate(*, kind: str = "") -> TinyPipeline:
    """Build EasyAnimate; ``kind`` is "", "Control" or "Inpaint"."""
    torch.manual_seed(0)
    transformer = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels={"": 4, "Control": 12, "Inpaint": 9}[kind],
        out_channels=4,
        patch_size=2,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=2,
        text_embed_dim=16,
        add_norm_text_encoder=True,
    ).eval()
    vae = diffusers.AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    pipe = getattr(diffusers, f"EasyAnimate{kind}Pipeline")(
        text_encoder=None,
        tokenizer=None,
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    inputs = {**_embeddings(16), "num_frames": 9, "guidance_scale": 5.0}
    size = {"prompt": None, "height": 32, "width": 32}
    return TinyPipeline(pipe, {**size, **inputs})


def helios(*, pyramid: bool = False) -> TinyPipeline:
    """Build Helios for one chunk of 3 latent frames, or its pyramid of three resolutions."""
    torch.manual_seed(0)
    size = {name: value for name, value in WAN_SIZE.items() if name != "rope_max_seq_len"}
    transformer = diffusers.HeliosTransformer3DModel(
        **size, in_channels=16, num_layers=2, rope_dim=(4, 4, 4)
    ).eval()
    # The default gamma, 1/3, makes a covariance that is singular but for rounding.
    scheduler = diffusers.HeliosScheduler(stages=3 if pyramid else 1, gamma=0.3)
    parts = {**wan_parts(), "scheduler": scheduler}
    build = diffusers.HeliosPyramidPipeline if pyramid else diffusers.HeliosPipeline
    inputs = {**wan_prompt(), "num_frames": 9, "guidance_scale": 5.0}
    inputs |= {"history_sizes": [4, 2, 1], "num_latent_frames_per_chunk": 3}
    if pyramid:
        inputs |= {"pyramid_num_inference_steps_list": [1, 1, 1], "height": 128, "width": 128}
    tiny = tiny_pipeline(build(**parts, transformer=transformer), **inputs)
    return replace(tiny, takes_steps=not pyramid)


def motif_video(*, image: bool = False, padded_in_front: bool = False) -> TinyPipeline:
    """Build Motif-Video, from text or from an image, with one decoding block."""
    torch.manual_seed(0)
    transformer = diffusers.MotifVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_decoder_layers=1,
        text_embed_dim=16,
        image_embed_dim=16 if image else None,
        rope_axes_dim=(4, 6, 6),
        enable_text_cross_attention_dual=True,
    ).eval()
    build = diffusers.MotifVideoImage2VideoPipeline if image else diffusers.MotifVideoPipeline
    pipe = build(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=wan_vae(),
        text_encoder=_with_vision_tower() if image else None,
        feature_extractor=siglip()["feature_extractor"],
        tokenizer=None,
        transformer=transformer,
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
    )
    inputs = {**_embeddings(16), "num_frames": 9}
    for name, valid in (("prompt", 13), ("negative_prompt", 4)):
        mask = (torch.arange(16) < valid)[None]
        inputs[f"{name}_attention_mask"] = mask.flip(1) if padded_in_front else mask
    if image:
        inputs["image"] = picture()
    return tiny_pipeline(pipe, **inputs)


def _with_vision_tower() -> Any:
    torch.manual_seed(0)
    text: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "head_dim": 8,
    }
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300}
    text |= {"dropout_rate": 0.0}
    vision = siglip()["image_encoder"].config.to_dict()
    config = transformers.T5Gemma2EncoderConfig(text_config=text, vision_config=vision)
    return transformers.T5Gemma2Encoder(config).eval()


def _embeddings(width: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {"prompt": None}
    for seed, name in enumerate(("prompt", "negative_prompt")):
        inputs[f"{name}_embeds"] = noise(1, 16, width, seed=seed)
        inputs[f"{name}_attention_mask"] = torch.ones(1, 16)
    return inputs
