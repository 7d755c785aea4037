"""Pipelines with random weights, but the head sizes and token grids of released models."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from vidsparse.pipelines import (
    testing,
    testing_cogvideox,
    testing_hunyuan,
    testing_ltx,
    testing_more,
    testing_wan,
    testing_worlds,
)
from vidsparse.pipelines.testing_parts import TinyPipeline, picture

_HEADS = {"num_attention_heads": 4, "attention_head_dim": 128}
_HEADS64 = {"num_attention_heads": 4, "attention_head_dim": 64}
_IMAGE = {**_HEADS, "added_kv_proj_dim": 512}
_HUNYUAN = {**_HEADS, "rope_axes_dim": (16, 56, 56)}
_HD = {"height": 720, "width": 1280}
_480P = {"height": 480, "width": 832}


@dataclass(frozen=True)
class ReleasedSize:
    """What makes a tiny pipeline as wide and long as a released one; four heads, two layers.

    Attributes:
        build: makes the tiny pipeline.
        config: of the transformer, beside what it has.
        inputs: of the call, beside what it has.
    """

    build: Callable[[], TinyPipeline]
    config: dict[str, Any]
    inputs: dict[str, Any]


# The VAEs of the tiny LTX pipelines shrink less than the released ones, so their pictures are
# smaller for the same number of tokens.
RELEASED_SIZES = {
    "wan": ReleasedSize(testing.wan, _HEADS, {**_HD, "num_frames": 81}),
    "wan_vace": ReleasedSize(testing.wan_vace, _HEADS, {**_480P, "num_frames": 81}),
    "wan_animate": ReleasedSize(
        testing_wan.animate,
        _IMAGE,
        {
            **_480P,
            "pose_video": [picture()] * 77,
            "face_video": [picture()] * 77,
            "segment_frame_length": 77,
        },
    ),
    "chronoedit": ReleasedSize(
        testing_wan.chronoedit,
        _IMAGE,
        {
            **_HD,
            "num_frames": 29,
            "enable_temporal_reasoning": True,
            "num_temporal_reasoning_steps": 2,
        },
    ),
    "skyreels_v2": ReleasedSize(
        testing_wan.skyreels_v2, _HEADS, {"height": 544, "width": 960, "num_frames": 97}
    ),
    "anyflow": ReleasedSize(testing_more.anyflow, _HEADS, {**_480P, "num_frames": 81}),
    "helios": ReleasedSize(
        testing_more.helios,
        {**_HEADS, "rope_dim": (44, 42, 42)},
        {
            "height": 384,
            "width": 640,
            "num_frames": 33,
            "history_sizes": [16, 2, 1],
            "num_latent_frames_per_chunk": 9,
        },
    ),
    "hunyuan_video": ReleasedSize(testing.hunyuan_video, _HUNYUAN, {**_HD, "num_frames": 129}),
    "hunyuan_video_framepack": ReleasedSize(
        testing_hunyuan.framepack,
        _HUNYUAN,
        {**_480P, "num_frames": 33, "latent_window_size": 9},
    ),
    "hunyuan_video15": ReleasedSize(
        testing_hunyuan.hunyuan_video15, _HUNYUAN, {**_HD, "num_frames": 121}
    ),
    "cogvideox": ReleasedSize(
        partial(testing.cogvideox, version="1.5"),
        {**_HEADS64, "sample_width": 170, "sample_height": 96, "sample_frames": 81},
        {"height": 768, "width": 1360, "num_frames": 81},
    ),
    "consisid": ReleasedSize(
        testing_cogvideox.consisid,
        {
            **_HEADS64,
            "sample_width": 90,
            "sample_height": 60,
            "sample_frames": 49,
            "LFE_output_dim": 170,
        },
        {"height": 480, "width": 720, "num_frames": 49},
    ),
    "ltx_video": ReleasedSize(
        testing.ltx_video,
        {**_HEADS, "cross_attention_dim": 512},
        {"height": 64, "width": 96, "num_frames": 81},
    ),
    "ltx2": ReleasedSize(
        partial(testing_ltx.ltx2, guided=False),
        {
            **_HEADS,
            "cross_attention_dim": 512,
            "audio_num_attention_heads": 4,
            "audio_attention_head_dim": 64,
            "audio_cross_attention_dim": 256,
        },
        {"height": 64, "width": 96, "num_frames": 31},
    ),
    "mochi": ReleasedSize(testing.mochi, _HEADS, {"height": 480, "width": 848, "num_frames": 85}),
    "allegro": ReleasedSize(
        testing_more.allegro,
        {**_HEADS, "attention_head_dim": 96, "cross_attention_dim": 384},
        {**_HD, "num_frames": 88},
    ),
    "easyanimate": ReleasedSize(
        testing_more.easyanimate, _HEADS64, {"height": 512, "width": 512, "num_frames": 49}
    ),
    "cosmos": ReleasedSize(
        testing_worlds.cosmos1,
        {**_HEADS, "max_size": (128, 240, 240)},
        {"height": 704, "width": 1280, "num_frames": 121},
    ),
    "kandinsky5": ReleasedSize(
        testing_worlds.kandinsky5,
        {"axes_dims": (16, 24, 24), "model_dim": 256},
        {"height": 512, "width": 768, "num_frames": 121},
    ),
    "kandinsky6": ReleasedSize(
        testing_worlds.kandinsky6,
        {"axes_dims": (32, 48, 48), "model_dim": 512},
        {"height": 512, "width": 768, "num_frames": 121},
    ),
    "motif_video": ReleasedSize(
        testing_more.motif_video,
        _HUNYUAN,
        {"height": 736, "width": 1280, "num_frames": 121},
    ),
}


def released_size(name: str, *, device: str = "cuda") -> TinyPipeline:
    """Build a pipeline whose attention has a released model's head and sequence lengths.

    Args:
        name: one of ``RELEASED_SIZES``.
        device: where it runs, in bfloat16.
    """
    tiny = released_heads(name, device=device)
    return replace(tiny, inputs={**tiny.inputs, **RELEASED_SIZES[name].inputs})


def released_heads(name: str, *, device: str = "cuda") -> TinyPipeline:
    """Do as ``released_size`` with a video as short as that of the tiny pipeline."""
    size = RELEASED_SIZES[name]
    tiny = size.build()
    old = tiny.pipe.transformer
    torch.manual_seed(0)
    new = type(old).from_config({**old.config, **size.config}).eval()
    tiny.pipe.register_modules(transformer=new)
    for module in modules_of(tiny):
        _cast(module, torch.bfloat16)
    tiny.pipe.to(device)
    return with_inputs_like(tiny, torch.empty(0, dtype=torch.bfloat16, device=device))


def modules_of(tiny: TinyPipeline) -> list[torch.nn.Module]:
    """Return the pipeline's models."""
    components = tiny.pipe.components.values()
    return [each for each in components if isinstance(each, torch.nn.Module)]


def with_inputs_like(tiny: TinyPipeline, example: torch.Tensor) -> TinyPipeline:
    """Put the tensors of a call where ``example`` is, those of real numbers in its dtype.

    Pipelines take embeddings as they are given: those that they make are on the model's device.
    """

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(each) for each in value]
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(example) if value.is_floating_point() else value.to(example.device)

    return replace(tiny, inputs={name: put(value) for name, value in tiny.inputs.items()})


def _cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Do as ``from_pretrained`` does: some parameters stay in float32."""
    # diffusers' own ``to`` warns of what is put right here.
    torch.nn.Module.to(model, dtype)
    precise = getattr(model, "_keep_in_fp32_modules", None) or ()
    for name, parameter in model.named_parameters():
        if any(part in precise for part in name.split(".")):
            parameter.data = parameter.data.float()
