"""Which kernel languages there are, and which can run on a device here."""

from __future__ import annotations

import enum
import importlib.util
import os
from functools import cache

import torch


class Impl(enum.StrEnum):
    """Implementations of block-sparse attention and of block mass.

    AUTO takes the fastest that runs here. REFERENCE computes in float32 (float64 for float64
    inputs), TORCH is made for CPUs, TRITON for any GPU, GLUON for Hopper.
    """

    AUTO = "auto"
    REFERENCE = "reference"
    TORCH = "torch"
    TRITON = "triton"
    GLUON = "gluon"


@cache
def has_triton() -> bool:
    """Say whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def triton_is_interpreted() -> bool:
    """Say whether Triton kernels run in its CPU interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def triton_is_native(device: torch.device) -> bool:
    """Say whether Triton kernels run compiled on a device."""
    return device.type == "cuda" and has_triton() and not triton_is_interpreted()


def why_no_triton(device: torch.device) -> str | None:
    """Return why Triton kernels cannot run on a device, or None when they can."""
    if not has_triton():
        return "triton is not installed; pip install triton (Linux)"
    if device.type == "cuda" or (device.type == "cpu" and triton_is_interpreted()):
        return None
    if device.type == "cpu":
        return "Triton needs a GPU; move the tensors to cuda or set TRITON_INTERPRET=1"
    return f"Triton does not run on {device.type} tensors; use cuda"
