"""Tiny random pipelines of the models built like Wan."""

from typing import Any

import diffusers
import torch

from vidsparse.pipelines.testing import WAN_SIZE, wan_parts, wan_prompt, wan_transformer
from vidsparse.pipelines.testing_parts import TinyPipeline, clip_vision, picture, tiny_pipeline


def first_last_frame_to_video() -> TinyPipeline:
    """Build Wan 2.1 image to video with a first and a last frame, both also seen by CLIP."""
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        **WAN_SIZE,
        in_channels=36,
        num_layers=2,
        image_dim=4,
        added_kv_proj_dim=24,
        pos_embed_seq_len=10,
    ).eval()
    pipe = diffusers.WanImageToVideoPipeline(
        **_without_encoder(), **clip_vision(), transformer=transformer
    )
    return _tiny(pipe, image=picture(), last_image=picture())


def text_image_to_video_5b() -> TinyPipeline:
    """Build Wan 2.2 TI2V: times per token, since the first latent frame is the image."""
    parts = _without_encoder()
    pipe = diffusers.WanImageToVideoPipeline(
        **parts,
        transformer=wan_transformer(),
        image_encoder=None,
        image_processor=None,
        expand_timesteps=True,
    )
    return _tiny(pipe, image=picture())


def animate() -> TinyPipeline:
    """Build Wan Animate for one segment; the reference is a latent frame in front."""
    torch.manual_seed(0)
    transformer = diffusers.WanAnimateTransformer3DModel(
        **WAN_SIZE,
        in_channels=36,
        num_layers=2,
        image_dim=4,
        added_kv_proj_dim=24,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    ).eval()
    pipe = diffusers.WanAnimatePipeline(
        **_without_encoder(), **clip_vision(), transformer=transformer
    )
    video = [picture()] * 9
    return _tiny(
        pipe,
        image=picture(),
        pose_video=video,
        face_video=video,
        segment_frame_length=9,
        num_frames=None,
    )


def chronoedit() -> TinyPipeline:
    """Build ChronoEdit, which makes the last frame of a short video an edited image."""
    torch.manual_seed(0)
    transformer = diffusers.ChronoEditTransformer3DModel(
        **WAN_SIZE, in_channels=36, num_layers=2, image_dim=4, added_kv_proj_dim=24
    ).eval()
    parts = {**_without_encoder(), **clip_vision(), "scheduler": _unipc()}
    pipe = diffusers.ChronoEditPipeline(**parts, transformer=transformer)
    return _tiny(pipe, image=picture())


def lucy_edit() -> TinyPipeline:
    """Build Lucy Edit: the video to edit enters as further channels."""
    pipe = diffusers.LucyEditPipeline(
        **_without_encoder(), transformer=wan_transformer(in_channels=32)
    )
    return _tiny(pipe, video=[picture()] * 9)


def skyreels_v2(*, kind: str = "") -> TinyPipeline:
    """Build SkyReels-V2.

    Args:
        kind: "", "ImageToVideo", "DiffusionForcing", "DiffusionForcingImageToVideo" or
            "DiffusionForcingVideoToVideo", as in the pipeline's name.
    """
    image, forcing = kind == "ImageToVideo", kind.startswith("DiffusionForcing")
    torch.manual_seed(0)
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        **WAN_SIZE,
        in_channels=36 if image else 16,
        num_layers=2,
        inject_sample_info=forcing,
        **({"image_dim": 4, "added_kv_proj_dim": 24} if image else {}),
    ).eval()
    parts = {**_without_encoder(), "scheduler": _unipc()}
    extra: dict[str, Any] = {}
    if image:
        parts |= clip_vision()
    if kind.endswith("ImageToVideo"):
        extra["image"] = picture()
    if kind.endswith("VideoToVideo"):
        extra |= {"video": [picture()] * 9, "num_frames": 17}
        extra |= {"base_num_frames": 9, "overlap_history": 5}
    build = getattr(diffusers, f"SkyReelsV2{kind}Pipeline")
    return _tiny(build(**parts, transformer=transformer), **extra)


def _unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )


def _without_encoder() -> dict[str, Any]:
    return {**wan_parts(), "tokenizer": None, "text_encoder": None}


def _tiny(pipe: Any, **inputs: Any) -> TinyPipeline:
    inputs = {"num_frames": 9, "guidance_scale": 6.0, **wan_prompt(), **inputs}
    if inputs["num_frames"] is None:
        del inputs["num_frames"]
    return tiny_pipeline(pipe, **inputs)
