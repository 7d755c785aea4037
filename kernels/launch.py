"""Launch data: which tile sizes run fast where. Methods ask ``block_sizes`` and never guess."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class LaunchConfig:
    """How one kernel is launched.

    Args:
        block_q: query rows of one program.
        block_kv: keys of one step of its loop.
        num_warps: warps of one program.
        num_stages: software pipeline stages.
    """

    block_q: int
    block_kv: int
    num_warps: int
    num_stages: int


# Plain Triton, by (architecture family, padded head size). sm90: H100 figures of
# `python -m vidsparse.profiling.tune_kernels CASE --density 0.25 --density 0.1`.
TRITON_CONFIGS: dict[tuple[str, int], LaunchConfig] = {
    ("sm90", 64): LaunchConfig(64, 64, 4, 3),
    ("sm90", 128): LaunchConfig(128, 64, 8, 3),
    ("sm80", 64): LaunchConfig(128, 64, 4, 3),
    ("sm80", 128): LaunchConfig(128, 64, 8, 2),
    ("other", 64): LaunchConfig(64, 64, 4, 2),
    ("other", 128): LaunchConfig(64, 64, 4, 1),
}


@cache
def architecture(device: torch.device) -> str:
    """Name the family of a device: "cpu", "sm80", "sm90", or "other" (ROCm, newer, older)."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "cpu" if device.type == "cpu" else "other"
    major = torch.cuda.get_device_capability(device)[0]
    return {8: "sm80", 9: "sm90"}.get(major, "other")


def block_sizes(device: torch.device | str, D: int) -> tuple[int, int]:
    """Return (block_q, block_kv) in tokens that masks should use on a device.

    Args:
        device: where attention will run.
        D: head size.
    """
    arch = architecture(torch.device(device))
    if arch == "cpu":
        return (64, 64)
    if arch == "sm90":
        return (128, 128)
    return (128, 64)


def padded_head_size(D: int) -> int:
    """Return the power of two at least 16 that holds a head of size D."""
    return max(16, 1 << (D - 1).bit_length())


def triton_config(device: torch.device, D: int) -> LaunchConfig:
    """Return the plain Triton kernel's configuration for a device and head size."""
    arch = architecture(device)
    family = arch if (arch, 64) in TRITON_CONFIGS else "other"
    if padded_head_size(D) > 128:
        return LaunchConfig(64, 32, 8, 1)
    return TRITON_CONFIGS[family, 64 if padded_head_size(D) <= 64 else 128]
