"""Tiny random pipelines of CogVideoX's kin: image, video and control to video, ConsisID."""

from typing import Any

import diffusers
import torch

from vidsparse.pipelines.testing_parts import TinyPipeline, noise, picture, tiny_pipeline

_SIZE: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "out_channels": 4,
    "time_embed_dim": 2,
    "text_embed_dim": 32,
    "num_layers": 2,
    "sample_width": 4,
    "sample_height": 4,
    "sample_frames": 9,
    "patch_size": 2,
    "max_text_seq_length": 16,
    "use_rotary_positional_embeddings": True,
}


def image_to_video() -> TinyPipeline:
    """Build CogVideoX image to video: the image enters as further channels."""
    pipe = diffusers.CogVideoXImageToVideoPipeline(**_parts(), transformer=_transformer(8))
    return _tiny(pipe, image=picture(), num_frames=9)


def video_to_video() -> TinyPipeline:
    """Build CogVideoX video to video, which skips the first steps."""
    pipe = diffusers.CogVideoXVideoToVideoPipeline(**_parts(), transformer=_transformer(4))
    return _tiny(pipe, video=[picture()] * 9, strength=0.5)


def fun_control() -> TinyPipeline:
    """Build CogVideoX-Fun: the control video enters as further channels."""
    pipe = diffusers.CogVideoXFunControlPipeline(**_parts(), transformer=_transformer(8))
    return _tiny(pipe, control_video=[picture()] * 9)


def consisid() -> TinyPipeline:
    """Build ConsisID with its face extractor."""
    torch.manual_seed(0)
    transformer = diffusers.ConsisIDTransformer3DModel(
        **_SIZE,
        in_channels=8,
        is_train_face=True,
        is_kps=False,
        cross_attn_interval=2,
        cross_attn_dim_head=4,
        cross_attn_num_heads=2,
        LFE_id_dim=6,
        LFE_vit_dim=4,
        LFE_depth=5,
        LFE_dim_head=4,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=2,
        LFE_output_dim=42,  # two thirds of the width
        LFE_ff_mult=1,
        LFE_num_scale=1,
    ).eval()
    pipe = diffusers.ConsisIDPipeline(**_parts(), transformer=transformer)
    return _tiny(
        pipe,
        image=picture(),
        num_frames=9,
        id_vit_hidden=[noise(1, 2, 4)],
        id_cond=noise(1, 6),
    )


def _transformer(in_channels: int) -> Any:
    torch.manual_seed(0)
    return diffusers.CogVideoXTransformer3DModel(**_SIZE, in_channels=in_channels).eval()


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler()
    return {"tokenizer": None, "text_encoder": None, "vae": vae, "scheduler": scheduler}


def _tiny(pipe: Any, **inputs: Any) -> TinyPipeline:
    embeddings = {
        "prompt": None,
        "prompt_embeds": noise(1, 16, 32),
        "negative_prompt_embeds": noise(1, 16, 32, seed=1),
    }
    return tiny_pipeline(pipe, **embeddings, guidance_scale=6.0, **inputs)
