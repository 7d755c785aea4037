"""Say what this machine can do: versions, devices, kernels and optional parts."""

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.block_sparse_attention import Impl, unsupported_reasons
from vidsparse.pipelines.base import supported_pipelines
from vidsparse.profiling.environment import PACKAGES, commit, driver, package_version

_BLOCK = 128
_HEAD_SIZES = (64, 128)


@dataclass(frozen=True)
class KernelSupport:
    """Whether one kernel implementation runs on one device.

    Attributes:
        impl: name, as ``impl=`` takes it.
        device: device it would run on.
        runs: whether it takes inputs of every head size in ``head_sizes``.
        head_sizes: those it takes.
        why_not: reasons against the others.
    """

    impl: str
    device: str
    runs: bool
    head_sizes: tuple[int, ...]
    why_not: tuple[str, ...]


def diagnose() -> dict[str, Any]:
    """Collect everything ``vidsparse doctor`` prints, as JSON-ready values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "commit": commit(),
        "driver": driver(),
        "devices": devices(),
        "kernels": [asdict(row) for device in _devices() for row in kernel_support(device)],
        "pipelines": supported_pipelines(),
        "parts": optional_parts(),
    }


def devices() -> list[dict[str, Any]]:
    """Describe the CPU and every GPU."""
    cpu = {
        "device": "cpu",
        "name": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    return [cpu, *map(_gpu, range(torch.cuda.device_count()))]


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "device": f"cuda:{index}",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
    }


def kernel_support(device: torch.device) -> list[KernelSupport]:
    """Ask every implementation whether it takes bfloat16 (CPU: float32) inputs on a device."""
    return [_support(impl, device) for impl in Impl if impl is not Impl.AUTO]


def _support(impl: Impl, device: torch.device) -> KernelSupport:
    reasons = {size: _reasons(impl, device, size) for size in _HEAD_SIZES}
    taken = tuple(size for size, why in reasons.items() if not why)
    why_not = tuple(dict.fromkeys(text for why in reasons.values() for text in why))
    runs = len(taken) == len(_HEAD_SIZES)
    return KernelSupport(impl.value, str(device), runs, taken, why_not)


def _reasons(impl: Impl, device: torch.device, head_size: int) -> list[str]:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    q = torch.zeros(1, 1, _BLOCK, head_size, dtype=dtype, device=device)
    mask = BlockMask.full(
        block_q=_BLOCK, block_kv=_BLOCK, seq_q=_BLOCK, seq_kv=_BLOCK, device=device
    )
    return unsupported_reasons(impl, q, q, q, mask)


def optional_parts() -> dict[str, str]:
    """Say for LPIPS, the bundled models and ffmpeg whether they are there, or how to get them."""
    return {"lpips": _lpips(), "bundled models": _models(), "ffmpeg": _ffmpeg()}


def _lpips() -> str:
    from vidsparse.quality import NO_BACKBONE, backbone_file

    return "available" if backbone_file().is_file() else NO_BACKBONE


def _models() -> str:
    from vidsparse.loading import bundled_names, has_weights

    missing = "weights missing; reinstall vidsparse or train them with examples/train_tiny"
    return ", ".join(
        f"{name} {'available' if has_weights(name) else missing}" for name in bundled_names()
    )


def _ffmpeg() -> str:
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_version())
    except RuntimeError:
        return "unavailable: pip install --force-reinstall imageio-ffmpeg" + (
            "" if shutil.which("ffmpeg") is None else ", or set IMAGEIO_FFMPEG_EXE to ffmpeg"
        )


def _devices() -> list[torch.device]:
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device("cpu"), *gpus]
