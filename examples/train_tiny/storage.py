"""Checkpoints: small shards that travel back, and the full state that stays on the machine."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

SHARD_BYTES = 14_000_000


def _replace(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    temporary = path.with_suffix(".partial")
    save_file(tensors, str(temporary), metadata=metadata)
    os.replace(temporary, path)


def save_shards(
    tensors: dict[str, Tensor], folder: Path, stem: str, metadata: dict[str, Any]
) -> list[Path]:
    """Write bfloat16 shards of at most 14 MB, each by an atomic rename."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        small = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        if size + small.nbytes > SHARD_BYTES:
            groups.append({})
            size = 0
        groups[-1][name] = small
        size += small.nbytes
    paths = []
    for index, group in enumerate(groups):
        path = folder / f"{stem}-{index}.safetensors"
        _replace(group, path, {"info": json.dumps(metadata)})
        paths.append(path)
    return paths


def load_shards(folder: Path, stem: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_shards` wrote; an empty dict when there is nothing."""
    tensors: dict[str, Tensor] = {}
    info: dict[str, Any] = {}
    for path in sorted(folder.glob(f"{stem}-*.safetensors")):
        with safe_open(str(path), "pt") as file:
            info = json.loads(file.metadata()["info"])
            for name in file.keys():  # noqa: SIM118  (not a dict)
                tensors[name] = file.get_tensor(name)
    return tensors, info


def fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copy the tensors named ``prefix.*`` into a module of any dtype."""
    state = {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    # Tied copies of the embedding aren't parameters of their own.
    tied = {name for name in missing if name.endswith("embed_tokens.weight")}
    if set(missing) - tied:
        raise ValueError(f"checkpoint lacks {sorted(set(missing) - tied)[:3]} of {prefix}")
    module.load_state_dict(state, strict=False)


def save_json(path: Path, value: Any) -> None:
    """Write JSON by an atomic rename."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)
