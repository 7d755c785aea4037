"""Tiny random diffusers pipelines that need no download, for tests and try-outs."""

from typing import Any

import diffusers
import torch

from vidsparse.pipelines.testing_parts import (
    TinyPipeline,
    clip_encoder,
    clip_tokenizer,
    llama_encoder,
    llama_tokenizer,
    noise,
    picture,
    t5_encoder,
    t5_tokenizer,
    tiny_pipeline,
)

__all__ = ["TinyPipeline"]

WAN_SIZE: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 256,
    "ffn_dim": 32,
    "cross_attn_norm": True,
    "rope_max_seq_len": 128,
}


def wan_transformer(
    *, layers: int = 2, heads: int = 2, head_dim: int = 12, in_channels: int = 16, seed: int = 0
) -> Any:
    """Build a Wan transformer for latents with 16 channels and text of 32."""
    torch.manual_seed(seed)
    size = {**WAN_SIZE, "num_attention_heads": heads, "attention_head_dim": head_dim}
    return diffusers.WanTransformer3DModel(
        **size, in_channels=in_channels, num_layers=layers
    ).eval()


def wan(*, experts: int = 1, layers: int = 2, heads: int = 2, head_dim: int = 12) -> TinyPipeline:
    """Build Wan 2.1 text to video, or Wan 2.2 with two experts.

    Args:
        experts: transformers, 1 or 2.
        layers: blocks of each.
        heads: attention heads.
        head_dim: head size, even.
    """
    parts = wan_parts()
    size = {"layers": layers, "heads": heads, "head_dim": head_dim}
    parts["transformer"] = wan_transformer(**size)
    if experts == 2:
        parts["transformer_2"] = wan_transformer(**size, seed=1)
        parts["boundary_ratio"] = 0.875
        parts["scheduler"] = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
    return tiny_pipeline(diffusers.WanPipeline(**parts), num_frames=9, guidance_scale=6.0)


def wan_image_to_video() -> TinyPipeline:
    """Build Wan 2.2 image to video: the image enters as 20 more latent channels."""
    parts = wan_parts()
    parts["transformer"] = wan_transformer(in_channels=36)
    pipe = diffusers.WanImageToVideoPipeline(**parts, image_encoder=None, image_processor=None)
    return tiny_pipeline(pipe, **wan_prompt(), image=picture(), num_frames=9, guidance_scale=6.0)


def wan_video_to_video() -> TinyPipeline:
    """Build Wan video to video, which skips the first steps."""
    parts = wan_parts()
    parts["transformer"] = wan_transformer()
    parts["scheduler"] = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanVideoToVideoPipeline(**parts)
    return tiny_pipeline(
        pipe, **wan_prompt(), video=[picture()] * 9, strength=0.5, guidance_scale=6.0
    )


def wan_vace() -> TinyPipeline:
    """Build Wan VACE with one control block."""
    torch.manual_seed(0)
    transformer = diffusers.WanVACETransformer3DModel(
        **WAN_SIZE, in_channels=16, num_layers=2, vace_layers=[0], vace_in_channels=96
    ).eval()
    pipe = diffusers.WanVACEPipeline(**wan_parts(), transformer=transformer)
    return tiny_pipeline(pipe, **wan_prompt(), num_frames=9, guidance_scale=6.0)


def wan_parts() -> dict[str, Any]:
    """Build what every Wan pipeline has beside its transformer."""
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_encoder("UMT5"),
        "vae": wan_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def wan_prompt() -> dict[str, Any]:
    """Return embeddings, since these pipelines clean prompts with the optional ftfy."""
    positive, negative = noise(2, 1, 16, 32)
    return {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}


def wan_vae() -> Any:
    """Build a Wan VAE: 4 x in time, 8 x in space, 16 channels."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def hunyuan_video() -> TinyPipeline:
    """Build HunyuanVideo with one block of each kind."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    ).eval()
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=llama_encoder(),
        tokenizer=llama_tokenizer(),
        text_encoder_2=clip_encoder(),
        tokenizer_2=clip_tokenizer(),
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    template = {"template": "{}", "crop_start": 0}
    return tiny_pipeline(pipe, prompt_template=template, num_frames=9, guidance_scale=4.5)


def cogvideox(*, version: str = "1.0") -> TinyPipeline:
    """Build CogVideoX; version 1.5 joins two latent frames to one and rotates positions."""
    newer = version == "1.5"
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16 if newer else 8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=2,
        sample_width=32 if newer else 4,
        sample_height=32 if newer else 4,
        sample_frames=9,
        patch_size=2,
        patch_size_t=2 if newer else None,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=newer,
        patch_bias=not newer,
    ).eval()
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )
    return tiny_pipeline(pipe, num_frames=9, guidance_scale=6.0)


def ltx_video(*, conditions: bool = False) -> TinyPipeline:
    """Build LTX-Video; with conditions, the pipeline that puts key frames in front."""
    build = diffusers.LTXConditionPipeline if conditions else diffusers.LTXPipeline
    pipe = build(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=ltx_vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=ltx_transformer(),
    )
    extra = {"image": picture(), "frame_index": 8} if conditions else {}
    return tiny_pipeline(pipe, **extra, num_frames=17, guidance_scale=3.0)


def ltx_transformer() -> Any:
    """Build an LTX-Video transformer for latents with 8 channels and text of 32."""
    torch.manual_seed(0)
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    ).eval()


def ltx_vae() -> Any:
    """Build an LTX-Video VAE: 4 x in time and space, 8 channels."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        patch_size_t=1,
    )


def mochi() -> TinyPipeline:
    """Build Mochi with the scheduler that counts time upwards, as released."""
    torch.manual_seed(0)
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=16,
    ).eval()
    transformer.pos_frequencies = torch.nn.Parameter(torch.full((3, 2, 4), 0.1))
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    pipe = diffusers.MochiPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=vae,
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
    )
    return tiny_pipeline(pipe, num_frames=7, guidance_scale=4.5)
