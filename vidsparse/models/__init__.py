"""The bundled models: what there is, where it lies, how to load it.

Nothing heavy is imported here; `load` imports torch and diffusers when it is called.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "Grid",
    "ModelInfo",
    "available",
    "caption_warning",
    "grid_warning",
    "info",
    "load",
    "path",
]

_FOLDER = Path(__file__).parent
# Parts of a pipeline that have weights.
_PARTS = ("transformer", "text_encoder", "vae")
_EXAMPLE = "a small red circle moves right over drifting green stripes"


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
    # The VAE makes 8 x 8 pixels and 4 frames one latent, the transformer a latent one token.
    tokens = ((num_frames - 1) // 4 + 1) * (height // 8) * (width // 8)
    return Grid(height, width, num_frames, tokens)


_MODELS = {
    "tiny": ModelInfo(
        name="tiny",
        description="19.8 M parameter WanPipeline of moving shapes, for tests and measuring",
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
        FileNotFoundError: its weights, or some of them, aren't part of this installation.
    """
    folder = _FOLDER / info(name).name
    missing = _missing_files(folder)
    if missing:
        raise FileNotFoundError(
            f"the weights of {name!r} are missing: {folder} has no {missing[0]}; reinstall "
            "vidsparse, or train them with examples/train_tiny"
        )
    return folder


def _missing_files(folder: Path) -> list[str]:
    """List what a diffusers folder lacks, the shards that its indices name included."""
    if not (folder / "model_index.json").is_file():
        return ["model_index.json"]
    wanted = [f"{part}/config.json" for part in _PARTS]
    for part in _PARTS:
        index = next((folder / part).glob("*.safetensors.index.json"), None)
        if index is not None:
            shards = set(json.loads(index.read_text())["weight_map"].values())
            wanted += sorted(f"{part}/{shard}" for shard in shards)
        elif not any((folder / part).glob("*.safetensors")):
            wanted.append(f"{part}/*.safetensors")
    return [file for file in wanted if not (folder / file).is_file()]


def load(name: str, *, device: str = "cpu", dtype: "torch.dtype | None" = None) -> Any:
    """Load a bundled model as a diffusers ``WanPipeline``.

    Args:
        name: one of `available`.
        device: where to put it.
        dtype: weights' and activations' type; None for what is fastest on the device:
            bfloat16, or float32 on a CPU without bfloat16 arithmetic (``precision``).

    Raises:
        ValueError: there is no such model.
        FileNotFoundError: its weights aren't part of this installation.
    """
    folder = path(name)
    from diffusers import WanPipeline

    from vidsparse.models.precision import default_dtype

    with warnings.catch_warnings():
        # diffusers 0.42 renames the argument to dtype, which 0.41 does not know.
        warnings.simplefilter("ignore", FutureWarning)
        pipe = WanPipeline.from_pretrained(
            folder, torch_dtype=dtype or default_dtype(device), local_files_only=True
        )
    return pipe.to(device)


def caption_warning(name: str, prompt: str) -> str | None:
    """Say that a bundled model knows no word of a prompt, and which it knows; None if it does.

    Such a prompt is like an empty one: the model draws whatever it likes.

    Raises:
        ValueError: there is no such model.
    """
    from vidsparse.models import grammar

    if grammar.known_words(prompt):
        return None
    groups = (grammar.COLOURS, grammar.SHAPES, grammar.VERBS, grammar.DIRECTIONS)
    words = ", ".join(word for group in groups for word in list(group)[:3])
    return (
        f"model {info(name).name!r} knows no word of {prompt!r} and draws anything; it knows "
        f"{words} and the like: try {_EXAMPLE!r}"
    )


def grid_warning(name: str, height: int, width: int, num_frames: int) -> str | None:
    """Say that a bundled model was not trained for a size, and for which it was; None if it was.

    Raises:
        ValueError: there is no such model.
    """
    card = info(name)
    if card.grid_of(height, width, num_frames) is not None:
        return None
    grids = ", ".join(
        f"{name} ({grid.width}x{grid.height}, {grid.num_frames} frames)"
        for name, grid in card.grids.items()
    )
    return (
        f"model {card.name!r} was not trained for {width}x{height} with {num_frames} frames; "
        f"its grids are {grids}"
    )
