"""Tiny random diffusers pipelines that need no download, for tests and try-outs."""

import string
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image
from torch import Tensor

_CHARACTERS = string.ascii_letters + string.digits + string.punctuation


@dataclass(frozen=True)
class TinyPipeline:
    """A pipeline with random weights and the arguments of a call that takes a second.

    Attributes:
        pipe: the pipeline, on the CPU in float32.
        inputs: keyword arguments of its call, without steps, seed and output type.
    """

    pipe: Any
    inputs: dict[str, Any]

    def generate(
        self, *, steps: int = 2, seed: int = 0, changes: dict[str, Any] | None = None
    ) -> Tensor:
        """Run it: the frames, (videos, F, C, H, W) in [0, 1].

        Args:
            steps: denoising steps.
            seed: of the initial noise.
            changes: arguments that replace or join ``inputs``.
        """
        arguments = {**self.inputs, **(changes or {})}
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            frames: Tensor = self.pipe(
                **arguments, num_inference_steps=steps, generator=generator, output_type="pt"
            ).frames
        return frames

    def latents(
        self, *, steps: int = 2, seed: int = 0, changes: dict[str, Any] | None = None
    ) -> Tensor:
        """Do as ``generate`` without decoding: the pipeline's latents."""
        arguments = {**self.inputs, **(changes or {}), "output_type": "latent"}
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            frames: Tensor = self.pipe(
                **arguments, num_inference_steps=steps, generator=generator
            ).frames
        return frames


_WAN_SIZE: dict[str, Any] = {
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
    size = {**_WAN_SIZE, "num_attention_heads": heads, "attention_head_dim": head_dim}
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
    parts = _wan_parts()
    size = {"layers": layers, "heads": heads, "head_dim": head_dim}
    parts["transformer"] = wan_transformer(**size)
    if experts == 2:
        parts["transformer_2"] = wan_transformer(**size, seed=1)
        parts["boundary_ratio"] = 0.875
        parts["scheduler"] = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
    return _tiny(diffusers.WanPipeline(**parts), num_frames=9, guidance_scale=6.0)


def wan_image_to_video() -> TinyPipeline:
    """Build Wan 2.2 image to video: the image enters as 20 more latent channels."""
    parts = _wan_parts()
    parts["transformer"] = wan_transformer(in_channels=36)
    pipe = diffusers.WanImageToVideoPipeline(**parts, image_encoder=None, image_processor=None)
    return _tiny(pipe, **_wan_prompt(), image=_image(), num_frames=9, guidance_scale=6.0)


def wan_video_to_video() -> TinyPipeline:
    """Build Wan video to video, which skips the first steps."""
    parts = _wan_parts()
    parts["transformer"] = wan_transformer()
    parts["scheduler"] = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanVideoToVideoPipeline(**parts)
    return _tiny(pipe, **_wan_prompt(), video=[_image()] * 9, strength=0.5, guidance_scale=6.0)


def wan_vace() -> TinyPipeline:
    """Build Wan VACE with one control block."""
    torch.manual_seed(0)
    transformer = diffusers.WanVACETransformer3DModel(
        **_WAN_SIZE, in_channels=16, num_layers=2, vace_layers=[0], vace_in_channels=96
    ).eval()
    pipe = diffusers.WanVACEPipeline(**_wan_parts(), transformer=transformer)
    return _tiny(pipe, **_wan_prompt(), num_frames=9, guidance_scale=6.0)


def _wan_parts() -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_encoder("UMT5"),
        "vae": wan_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def _wan_prompt() -> dict[str, Any]:
    # Embeddings, since these pipelines clean prompts with the optional ftfy.
    positive, negative = torch.randn(2, 1, 16, 32, generator=torch.Generator().manual_seed(0))
    return {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}


def _image() -> Image.Image:
    pixels = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


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


def t5_tokenizer() -> Any:
    """Build a T5 tokenizer of single characters."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(c, -3.0) for c in _CHARACTERS]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0)


def t5_encoder(kind: str = "T5") -> Any:
    """Build a text encoder of width 32; ``kind`` is T5 or UMT5."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def _tiny(pipe: Any, **inputs: Any) -> TinyPipeline:
    pipe.set_progress_bar_config(disable=True)
    common = {"prompt": "dance monkey", "height": 32, "width": 32, "max_sequence_length": 16}
    return TinyPipeline(pipe, {**common, **inputs})
