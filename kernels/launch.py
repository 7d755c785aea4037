"""Launch data: which tiles run fast where. Methods ask ``preferred_blocks`` and never guess."""

from __future__ import annotations

from dataclasses import dataclass, replace
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


# Plain Triton, by (architecture family, padded head size). sm90: fastest on an H100 of
# `python -m vidsparse.profiling.tune_kernels CASE --density 0.25 --density 0.1`, for head size 64
# with CASE cogvideox1.5-d64 and small-d64, for 128 with wan14b-720p-128 and wan14b-720p-kv64.
TRITON_CONFIGS: dict[tuple[str, int], LaunchConfig] = {
    ("sm90", 64): LaunchConfig(64, 128, 4, 2),
    ("sm90", 128): LaunchConfig(128, 64, 4, 2),
    ("sm80", 64): LaunchConfig(128, 64, 4, 3),
    ("sm80", 128): LaunchConfig(128, 64, 8, 2),
    ("other", 64): LaunchConfig(64, 64, 4, 2),
    ("other", 128): LaunchConfig(64, 64, 4, 1),
}
# float32 multiplies on FMA units out of registers: larger tiles spill. Its 32 keys divide every
# tile above, so a mask that those tiles fit is fit by this one.
FLOAT32_CONFIG = LaunchConfig(64, 32, 4, 2)


@cache
def architecture(device: torch.device) -> str:
    """Name the family of a device: "cpu", "sm80", "sm90", or "other" (ROCm, newer, older)."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "cpu" if device.type == "cpu" else "other"
    major = torch.cuda.get_device_capability(device)[0]
    return {8: "sm80", 9: "sm90"}.get(major, "other")


def preferred_blocks(device: torch.device | str) -> tuple[int, int]:
    """Return (block_q, block_kv) in tokens that masks should use where attention will run."""
    arch = architecture(torch.device(device))
    if arch == "cpu":
        return (64, 64)
    if arch == "sm90":
        return (128, 128)
    return (128, 64)


def padded_head_size(D: int) -> int:
    """Return the power of two at least 16 that holds a head of size D."""
    return max(16, 1 << (D - 1).bit_length())


def triton_config(device: torch.device, D: int, block_kv: int = 0) -> LaunchConfig:
    """Return the plain Triton kernel's configuration.

    Args:
        device: where it runs.
        D: head size.
        block_kv: keys per mask block; 0 if blocks vary. A tile of 128 keys is halved where that
            lets it lie in one block.
    """
    arch = architecture(device)
    family = arch if (arch, 64) in TRITON_CONFIGS else "other"
    if padded_head_size(D) > 128:
        return LaunchConfig(64, 32, 8, 1)
    config = TRITON_CONFIGS[family, 64 if padded_head_size(D) <= 64 else 128]
    if config.block_kv == 128 and block_kv % 128 and block_kv % 64 == 0:
        return replace(config, block_kv=64)
    return config
