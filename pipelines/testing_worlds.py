"""Tiny random pipelines of Cosmos 1, 2 and 2.5 and of Kandinsky 5 and 6."""

from typing import Any

import diffusers
import torch

from vidsparse.pipelines.testing import wan_vae
from vidsparse.pipelines.testing_parts import TinyPipeline, noise, picture, tiny_pipeline

_COSMOS: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "mlp_ratio": 2,
    "text_embed_dim": 32,
    "adaln_lora_dim": 4,
    "max_size": (4, 40, 40),
    "patch_size": (1, 2, 2),
    "concat_padding_mask": True,
}
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


class SafetyChecker:
    """Finds everything safe; the real one needs a package and a download.

    No module: pipelines take the device of any of theirs for their own, and move this one away.
    """

    def to(self, device: torch.device | str) -> None:
        """Stay."""

    def check_text_safety(self, prompt: str) -> bool:
        """Say yes."""
        return True

    def check_video_safety(self, video: Any) -> Any:
        """Return the video."""
        return video


def cosmos1(*, video: bool = False) -> TinyPipeline:
    """Build Cosmos 1 text to world, or video to world with the condition as more channels."""
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
        latents_mean=[0.0] * 4 * 16,
        latents_std=[1.0] * 4 * 16,
    )
    scheduler = diffusers.EDMEulerScheduler(
        sigma_max=80, sigma_schedule="karras", prediction_type="epsilon"
    )
    build = diffusers.CosmosVideoToWorldPipeline if video else diffusers.CosmosTextToWorldPipeline
    pipe = build(
        **_parts(scheduler, vae),
        transformer=_transformer(5 if video else 4, 4, "learnable"),
    )
    return _tiny(pipe, num_frames=17, **({"image": picture()} if video else {}))


def cosmos2(*, image: bool = False) -> TinyPipeline:
    """Build Cosmos 2 video to world, or text to image: one frame."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    parts = _parts(scheduler, wan_vae())
    if image:
        pipe = diffusers.Cosmos2TextToImagePipeline(**parts, transformer=_transformer(16, 16))
        return _tiny(pipe)
    pipe = diffusers.Cosmos2VideoToWorldPipeline(**parts, transformer=_transformer(17, 16))
    return _tiny(pipe, image=picture(), num_frames=9)


def cosmos25(*, transfer: bool = False) -> TinyPipeline:
    """Build Cosmos 2.5 Predict, or Transfer with a ControlNet of one block."""
    parts = _parts(diffusers.UniPCMultistepScheduler(**_FLOW), wan_vae())
    extra: dict[str, Any] = {"controlnet_block_every_n": 1} if transfer else {}
    parts["transformer"] = _transformer(17, 16, **extra)
    if not transfer:
        return _tiny(diffusers.Cosmos2_5_PredictBasePipeline(**parts), num_frames=9)
    size = {name: x for name, x in _COSMOS.items() if name not in ("num_layers", "max_size")}
    del size["concat_padding_mask"]
    torch.manual_seed(0)
    controlnet = diffusers.CosmosControlNetModel(
        **size, n_controlnet_blocks=2, in_channels=18, latent_channels=18, model_channels=32
    ).eval()
    pipe = diffusers.Cosmos2_5_TransferPipeline(**parts, controlnet=controlnet)
    return _tiny(pipe, controls=[picture()] * 5, num_frames=5, num_frames_per_chunk=5)


def kandinsky5(*, image: bool = False, attention: str = "regular") -> TinyPipeline:
    """Build Kandinsky 5, from text or from an image; ``attention`` may be "nabla"."""
    torch.manual_seed(0)
    transformer = diffusers.Kandinsky5Transformer3DModel(
        **_kandinsky(), visual_cond=image, attention_type=attention
    ).eval()
    build = diffusers.Kandinsky5I2VPipeline if image else diffusers.Kandinsky5T2VPipeline
    pipe = build(**_kandinsky_parts(), transformer=transformer)
    inputs: dict[str, Any] = {"image": picture()} if image else {}
    for seed, prefix in enumerate(("", "negative_")):
        inputs[f"{prefix}prompt_embeds_qwen"] = noise(1, 7, 16, seed=seed)
        inputs[f"{prefix}prompt_embeds_clip"] = noise(1, 8, seed=seed)
        inputs[f"{prefix}prompt_cu_seqlens"] = torch.tensor([0, 7], dtype=torch.int32)
    # The first frame of a video from an image takes mean and deviation of those behind it.
    return tiny_pipeline(
        pipe, prompt=None, **inputs, num_frames=17 if image else 9, guidance_scale=4.0
    )


def kandinsky6() -> TinyPipeline:
    """Build Kandinsky 6 without sound; a reference frame stands behind the others."""
    torch.manual_seed(0)
    transformer = diffusers.Kandinsky6Transformer3DModel(
        **_kandinsky(), visual_cond=True, in_audio_dim=4, out_audio_dim=4,
        visual_token_type_num_embeddings=2,
    ).eval()  # fmt: skip
    pipe = diffusers.Kandinsky6TI2VAPipeline(**_kandinsky_parts(), transformer=transformer)
    inputs: dict[str, Any] = {"sample_audio": False, "image": picture()}
    for seed, prefix in enumerate(("", "negative_")):
        inputs[f"{prefix}prompt_embeds"] = noise(1, 7, 16, seed=seed)
        inputs[f"{prefix}pooled_prompt_embeds"] = noise(1, 8, seed=seed)
    return tiny_pipeline(pipe, prompt=None, **inputs, num_frames=9, guidance_scale=4.0)


def _kandinsky() -> dict[str, Any]:
    return {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "in_text_dim": 16,
        "in_text_dim2": 8,
        "time_dim": 16,
        "model_dim": 24,
        "ff_dim": 32,
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
        "axes_dims": (4, 4, 4),
    }


def _kandinsky_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    names = "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    return {"vae": vae, "scheduler": scheduler, **dict.fromkeys(names)}


def _transformer(
    in_channels: int, out_channels: int, positions: str | None = None, **extra: Any
) -> Any:
    torch.manual_seed(0)
    return diffusers.CosmosTransformer3DModel(
        **_COSMOS,
        in_channels=in_channels,
        out_channels=out_channels,
        extra_pos_embed_type=positions,
        **extra,
    ).eval()


def _parts(scheduler: Any, vae: Any) -> dict[str, Any]:
    checker = SafetyChecker()
    names = "text_encoder", "tokenizer"
    return {"scheduler": scheduler, "vae": vae, "safety_checker": checker, **dict.fromkeys(names)}


def _tiny(pipe: Any, **inputs: Any) -> TinyPipeline:
    embeddings = {
        "prompt": None,
        "prompt_embeds": noise(1, 16, 32),
        "negative_prompt_embeds": noise(1, 16, 32, seed=1),
    }
    return tiny_pipeline(pipe, **embeddings, **inputs, guidance_scale=3.0)
