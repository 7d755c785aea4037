"""The bundled models: what there is, where it lies, how to load it.

Nothing heavy is imported here; `load` imports torch and diffusers when it is called.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Grid", "ModelInfo", "available", "info", "load", "path"]


@dataclass(frozen=True)
class Grid:
    """A size of video that a model was trained for.

    Attributes:
        height: pixels.
        width: pixels.
        num_frames: frames of the video, 4 k + 1.
        tokens: video tokens in the transformer.
    """

    height: int
    width: int
    num_frames: int
    tokens: int


@dataclass(frozen=True)
class ModelInfo:
    """What a caller needs to know before loading a bundled model."""

    name: str
    description: str
    grids: dict[str, Grid]
    steps: int
    guidance: float
    licence: str

    def grid_of(self, height: int, width: int, num_frames: int) -> str | None:
        """Name the trained grid of this size, or None if the model wasn't trained for it."""
        sizes = {(g.height, g.width, g.num_frames): name for name, g in self.grids.items()}
        return sizes.get((height, width, num_frames))


def _grid(height: int, width: int, num_frames: int) -> Grid:
    # The VAE makes 4 x 4 pixels and 4 frames one latent, the transformer 2 x 2 latents one token.
    tokens = ((num_frames - 1) // 4 + 1) * (height // 8) * (width // 8)
    return Grid(height, width, num_frames, tokens)


_MODELS = {
    "tiny": ModelInfo(
        name="tiny",
        description="19 M parameter WanPipeline that draws moving shapes, for tests and measuring",
        grids={
            "cpu": _grid(128, 128, 33),
            "gpu": _grid(192, 192, 61),
            "gpu-large": _grid(320, 320, 81),
        },
        steps=20,
        guidance=4.0,
        licence="Apache-2.0",
    )
}


def available() -> list[ModelInfo]:
    """List the bundled models, whether or not their weights are there."""
    return list(_MODELS.values())


def info(name: str) -> ModelInfo:
    """Describe one model.

    Raises:
        ValueError: there is no such model.
    """
    if name not in _MODELS:
        raise ValueError(f"model {name!r} is not bundled; choose from {', '.join(_MODELS)}")
    return _MODELS[name]


def path(name: str) -> Path:
    """Return the folder to give to ``WanPipeline.from_pretrained``.

    Raises:
        ValueError: there is no such model.
        FileNotFoundError: its weights aren't part of this installation.
    """
    folder = Path(__file__).parent / info(name).name
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"the weights of {name!r} are missing from {folder}; reinstall vidsparse or train them "
            "with examples/train_tiny"
        )
    return folder


def load(name: str, *, device: str = "cpu", dtype: "torch.dtype | None" = None) -> Any:
    """Load a bundled model as a diffusers ``WanPipeline``.

    Args:
        name: one of `available`.
        device: where to put it.
        dtype: weights' and activations' type; None for bfloat16, as stored.

    Raises:
        ValueError: there is no such model.
        FileNotFoundError: its weights aren't part of this installation.
    """
    folder = path(name)
    import torch
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(
        folder, torch_dtype=dtype or torch.bfloat16, local_files_only=True
    )
    return pipe.to(device)
