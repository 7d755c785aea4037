"""Find a model on this machine and load it: device, dtype, pipeline."""

import warnings
from pathlib import Path
from typing import Any

import torch

from vidsparse import models
from vidsparse.errors import UsageError, first_line
from vidsparse.models.precision import default_dtype

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: the name is unknown or there is no such GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r} was asked for, but torch sees no GPU; use --device cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no {name!r}; torch sees {torch.cuda.device_count()} GPU(s)")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype for ``auto`` (`default_dtype`) or a dtype's name.

    Raises:
        UsageError: the name is unknown.
    """
    if name == "auto":
        return default_dtype(device)
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def is_bundled(model: str) -> bool:
    """Say whether a name is one of the bundled models."""
    return model in bundled_names()


def bundled_names() -> list[str]:
    """Return the names of the bundled models."""
    return [card.name for card in models.available()]


def has_weights(name: str) -> bool:
    """Say whether a bundled model's weights are part of this installation."""
    try:
        return models.path(name).is_dir()
    except FileNotFoundError:
        return False


def load_pipeline(model: str, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a diffusers pipeline from this machine; nothing is downloaded.

    Args:
        model: a bundled model, a folder in diffusers format, or the name of a Hugging Face
            repository that is in the local cache.
        device: where it runs.
        dtype: of the weights.

    Raises:
        UsageError: there is no such model here, or its files are incomplete.
    """
    if is_bundled(model):
        pipe: Any = _load_bundled(model, device, dtype)
    else:
        pipe = _load_folder(_model_folder(model), model, dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _load_bundled(model: str, device: torch.device, dtype: torch.dtype) -> Any:
    try:
        return models.load(model, device=str(device), dtype=dtype)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error


def _model_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UsageError(f"{model} is no diffusers folder: it has no model_index.json")
        return folder
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return _cached_repository(model)
    raise UsageError(
        f"unknown model {model!r}; use {', '.join(bundled_names())}, "
        "the path of a diffusers folder, or a cached Hugging Face repository like owner/name"
    )


def _cached_repository(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"model {name!r} is neither a folder nor in the Hugging Face cache; "
            f"download it with: hf download {name}"
        ) from error


def _load_folder(folder: Path, model: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    try:
        with warnings.catch_warnings():
            # diffusers 0.42 renames the argument to dtype, which 0.41 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            return DiffusionPipeline.from_pretrained(
                folder, torch_dtype=dtype, local_files_only=True
            )
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"model {model!r} cannot be loaded: {first_line(error)}") from error
