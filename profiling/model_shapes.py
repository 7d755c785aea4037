"""Released transformers with the inputs of their default call, to time with random weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout

Inputs = dict[str, Any]
MakeInputs = Callable[["ModelShape", nn.Module, "Maker"], Inputs]


@dataclass(frozen=True)
class Maker:
    """Draw random inputs on a device.

    Attributes:
        device: where.
        dtype: of the model.
        seed: of a generator of its own.
    """

    device: torch.device
    dtype: torch.dtype
    seed: int = 0

    def normal(self, *shape: int) -> Tensor:
        """Draw from a standard normal distribution; the same numbers for the same shape."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    def ones(self, *shape: int) -> Tensor:
        """Return an int64 mask that hides nothing."""
        return torch.ones(shape, device=self.device, dtype=torch.int64)


@dataclass(frozen=True)
class ModelShape:
    """A released transformer at the size of one of its default calls.

    Attributes:
        name: as on the command line.
        transformer: class in diffusers.
        grid: video tokens, (frames, height, width).
        heads: per attention.
        head_size: D.
        layers: video self-attentions.
        inputs: makes the keyword arguments of a forward, the timestep apart.
        config: arguments of the class that differ from its defaults.
        text: text tokens that join the self-attention.
        rows: batch of a forward: 2 where guidance is batched.
        patch: tokens to latents, (frames, height, width).
    """

    name: str
    transformer: str
    grid: tuple[int, int, int]
    heads: int
    head_size: int
    layers: int
    inputs: MakeInputs
    config: dict[str, Any] = field(default_factory=dict)
    text: int = 0
    rows: int = 1
    patch: tuple[int, int, int] = (1, 2, 2)

    @property
    def tokens(self) -> int:
        """S of one self-attention."""
        return VideoLayout(*self.grid).num_tokens + self.text

    @property
    def latents(self) -> tuple[int, int, int]:
        """Latent (frames, height, width)."""
        f, h, w = (n * p for n, p in zip(self.grid, self.patch, strict=True))
        return f, h, w

    def build(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Make the transformer with its random initial weights, on the device at once."""
        import diffusers

        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model: nn.Module = getattr(diffusers, self.transformer)(**self.config)
        finally:
            torch.set_default_dtype(before)
        _keep_in_float32(model)
        return model.eval().requires_grad_(False)

    def bytes_needed(self, dtype: torch.dtype) -> int:
        """Return the least memory of weights and activations of a forward, an estimate."""
        import diffusers

        with torch.device("meta"):
            model = getattr(diffusers, self.transformer)(**self.config)
        weights = sum(p.numel() for p in model.parameters())
        # Hidden states, q, k, v, their copies in the plan's order, output, and the feed-forward.
        activations = self.rows * self.tokens * self.heads * self.head_size * 14
        return int((weights + activations) * dtype.itemsize)


def _keep_in_float32(model: nn.Module) -> None:
    """Widen what diffusers keeps in float32 when it loads weights in a narrower type."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if kept & set(name.split(".")):
            parameter.data = parameter.data.float()


def find_shape(name: str) -> ModelShape:
    """Find a shape by name.

    Raises:
        UsageError: it is unknown.
    """
    if name not in SHAPES:
        raise UsageError(f"unknown shape {name!r}; choose one of {', '.join(SHAPES)}")
    return SHAPES[name]


def _wan(shape: ModelShape, model: Any, make: Maker) -> Inputs:
    return {
        "hidden_states": make.normal(shape.rows, model.config.in_channels, *shape.latents),
        "encoder_hidden_states": make.normal(shape.rows, 512, model.config.text_dim),
    }


def _hunyuan(shape: ModelShape, model: Any, make: Maker) -> Inputs:
    return {
        "hidden_states": make.normal(shape.rows, model.config.in_channels, *shape.latents),
        "encoder_hidden_states": make.normal(shape.rows, shape.text, model.config.text_embed_dim),
        "encoder_attention_mask": make.ones(shape.rows, shape.text),
        "pooled_projections": make.normal(shape.rows, model.config.pooled_projection_dim),
        "guidance": torch.full((shape.rows,), 6000.0, device=make.device, dtype=make.dtype),
    }


def _cogvideox(shape: ModelShape, model: Any, make: Maker) -> Inputs:
    frames, height, width = shape.latents
    video = (shape.rows, frames, model.config.in_channels, height, width)
    # Any rotation takes the same time.
    tokens = VideoLayout(*shape.grid).num_tokens
    angles = make.normal(tokens, shape.head_size).float()
    return {
        "hidden_states": make.normal(*video),
        "encoder_hidden_states": make.normal(shape.rows, shape.text, model.config.text_embed_dim),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def _ltx(shape: ModelShape, model: Any, make: Maker) -> Inputs:
    frames, height, width = shape.grid
    tokens = frames * height * width
    return {
        "hidden_states": make.normal(shape.rows, tokens, model.config.in_channels),
        "encoder_hidden_states": make.normal(shape.rows, 128, model.config.caption_channels),
        "encoder_attention_mask": make.ones(shape.rows, 128),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


def _mochi(shape: ModelShape, model: Any, make: Maker) -> Inputs:
    return {
        "hidden_states": make.normal(shape.rows, model.config.in_channels, *shape.latents),
        "encoder_hidden_states": make.normal(shape.rows, shape.text, model.config.text_embed_dim),
        "encoder_attention_mask": make.ones(shape.rows, shape.text).bool(),
    }


def _allegro(shape: ModelShape, model: Any, make: Maker) -> Inputs:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    config = model.config
    frames, height, width = shape.grid
    *waves, t, h, w = get_3d_rotary_pos_embed_allegro(
        embed_dim=shape.head_size,
        crops_coords=((0, 0), (height, width)),
        grid_size=(height, width),
        temporal_size=frames,
        interpolation_scale=(
            config.interpolation_scale_t,
            config.interpolation_scale_h,
            config.interpolation_scale_w,
        ),
        device=make.device,
    )
    places = torch.cartesian_prod(t.long(), h.long(), w.long()).T.reshape(3, 1, -1).contiguous()
    return {
        "hidden_states": make.normal(shape.rows, config.in_channels, *shape.latents),
        "encoder_hidden_states": make.normal(shape.rows, 512, config.caption_channels),
        "encoder_attention_mask": make.ones(shape.rows, 512),
        "image_rotary_emb": (tuple(waves), tuple(places)),
    }


_WAN_1_3B = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
_COGVIDEOX_1_5 = {
    "num_attention_heads": 48,
    "num_layers": 42,
    "patch_size_t": 2,
    "patch_bias": False,
    "sample_height": 300,
    "sample_width": 300,
    "sample_frames": 81,
    "use_rotary_positional_embeddings": True,
}
_TINY = {
    "num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2, "ffn_dim": 256,
    "text_dim": 64, "freq_dim": 64,
}  # fmt: skip

# Source: diffusers' configurations and the default calls of its pipelines.
SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape(
            "wan2.1-14b-720p", "WanTransformer3DModel", (21, 45, 80), 40, 128, 40, _wan
        ),
        ModelShape(
            "wan2.1-1.3b-480p", "WanTransformer3DModel", (21, 30, 52), 12, 128, 30, _wan,
            config=_WAN_1_3B,
        ),
        ModelShape(
            "hunyuanvideo-720p-129f", "HunyuanVideoTransformer3DModel", (33, 45, 80), 24, 128, 60,
            _hunyuan, text=256,
        ),
        ModelShape(
            "cogvideox1.5-5b", "CogVideoXTransformer3DModel", (11, 48, 85), 48, 64, 42, _cogvideox,
            config=_COGVIDEOX_1_5, text=226, rows=2, patch=(2, 2, 2),
        ),
        ModelShape(
            "ltx-video", "LTXVideoTransformer3DModel", (21, 16, 22), 32, 64, 28, _ltx, rows=2,
            patch=(1, 1, 1),
        ),
        ModelShape(
            "mochi", "MochiTransformer3DModel", (28, 30, 53), 24, 128, 48, _mochi, text=256, rows=2
        ),
        ModelShape(
            "allegro-720p", "AllegroTransformer3DModel", (22, 45, 80), 24, 96, 32, _allegro, rows=2
        ),
        ModelShape(
            "tiny-cpu", "WanTransformer3DModel", (5, 16, 16), 2, 64, 2, _wan, config=_TINY
        ),
    )
}  # fmt: skip
