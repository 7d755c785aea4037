"""Dense runs that differ from the dense reference only in how numbers are rounded."""

from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsparse import cli_common as common
from vidsparse.compare import Contender
from vidsparse.errors import UsageError
from vidsparse.loading import load_pipeline, pick_device

FLOORS = ("auto", "precision", "backend", "none")


def check_floor(kind: str) -> None:
    """Refuse a floor that does not exist.

    Raises:
        UsageError: it is none of ``FLOORS``.
    """
    if kind not in FLOORS:
        raise UsageError(f"unknown --floor {kind!r}; choose one of {', '.join(FLOORS)}")


def floor_contender(
    kind: str, model: str, pipe: Any, device: str, *, quiet: bool
) -> Contender | None:
    """Return another dense run: differences below what it differs by mean nothing."""
    if kind == "auto":
        kind = "backend" if pipe.device.type == "cuda" else "precision"
    if kind == "precision":
        return _other_precision(model, pipe, device, quiet=quiet)
    return _other_backend(pipe) if kind == "backend" else None


def _other_precision(model: str, pipe: Any, device: str, *, quiet: bool) -> Contender:
    other = torch.bfloat16 if pipe.transformer.dtype == torch.float32 else torch.float32
    with common.waiting(f"loading {model} in {other}", quiet=quiet):
        second = load_pipeline(model, device=pick_device(device), dtype=other)
    return Contender(f"dense {str(other).removeprefix('torch.')}", second)


def _other_backend(pipe: Any) -> Contender:
    """Return dense generation with another attention kernel than torch's first choice.

    On a GPU the memory-efficient one, which holds no S x S matrix either; on a CPU plain math,
    which on a GPU takes what the other refuses: masks of some text encoders.
    """
    cuda = pipe.device.type == "cuda"
    backends = [SDPBackend.EFFICIENT_ATTENTION] if cuda else []
    name = "efficient" if cuda else "math"
    kernel = partial(sdpa_kernel, [*backends, SDPBackend.MATH], set_priority=True)
    return Contender(f"dense {name} kernel", pipe, context=kernel)
