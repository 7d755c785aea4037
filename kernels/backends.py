"""Which kernel languages there are, and which can run on a device here."""

from __future__ import annotations

import enum
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable
from functools import cache

import torch

_LOG = logging.getLogger(__name__)


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


def choose_impl(
    asked: Impl,
    candidates: Iterable[Impl],
    reasons: Callable[[Impl], list[str]],
    *,
    task: str,
    where: str,
) -> Impl:
    """Return the implementation asked for, or for AUTO the first candidate that can run.

    Args:
        asked: AUTO, or an implementation that is used or refused, never replaced.
        candidates: for AUTO, the fastest first; the log says once why the first ones were not it.
        reasons: lists why an implementation cannot run; empty when it can.
        task: what is computed, for messages.
        where: the device, and what else the choice depends on, for the log.

    Raises:
        ValueError: what is asked for cannot run; for AUTO, no candidate can.
    """
    if asked is not Impl.AUTO:
        why = reasons(asked)
        if why:
            raise ValueError(f"impl={asked.value!r} cannot run here: " + "; ".join(why))
        return asked
    refused: list[str] = []
    for impl in candidates:
        why = reasons(impl)
        if not why:
            _log_choice(task, where, impl, "; ".join(refused))
            return impl
        refused.append(f"{impl.value}: {', '.join(why)}")
    raise ValueError(f"{task} cannot run here: " + "; ".join(refused))


@cache
def _log_choice(task: str, where: str, impl: Impl, refused: str) -> None:
    _LOG.info("%s on %s: %s%s", task, where, impl.value, f" ({refused})" if refused else "")
