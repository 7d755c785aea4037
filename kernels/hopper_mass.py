"""Launch the Gluon kernel that sums the attention mass of blocks: what it takes, tile shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.kernels.descriptors import gluon_descriptor, head_groups
from vidsparse.kernels.hopper import hopper_reasons
from vidsparse.kernels.launch import padded_head_size

_LOG2_E = 1.4426950408889634
_GROUP_ROWS = 64
_GROUP_WARPS = 4
_PART_TOKENS = 16


@dataclass(frozen=True)
class MassConfig:
    """Shape of one CTA.

    Args:
        groups: consumer warpgroups of 64 query rows, 2 or 3.
        tile_kv: keys of one step.
        stages: depth of the K ring, at least 2.
        registers: registers per consumer thread.
        max_registers: budget per thread over all warps.
        cubic_share: every n-th exponential is computed on the FMA units, for n = 4 or 8; 0: none.
    """

    groups: int
    tile_kv: int
    stages: int
    registers: int
    max_registers: int
    cubic_share: int = 0


# By padded head size; fastest on an H200 at 40 heads of 75600 tokens and 48 of 45056, among those
# that `python -m vidsparse.profiling.tune_parts` times: 92 ms where plain Triton takes 129.
MASS_CONFIGS: dict[int, MassConfig] = {
    128: MassConfig(3, 128, 3, 160, 128, 8),
    64: MassConfig(3, 128, 4, 160, 128, 8),
}


def mass_reasons(q: Tensor, k: Tensor, block_q: int | None, block_kv: int | None) -> list[str]:
    """List why the Gluon kernel cannot sum these blocks; None stands for blocks of any size."""
    reasons = hopper_reasons(q=q, k=k)
    if k.dtype != q.dtype:
        reasons.append(f"dtypes {q.dtype} and {k.dtype}; give one")
    for name, block in (("query", block_q), ("key", block_kv)):
        if block is None:
            reasons.append(f"{name} blocks of several sizes; give one size")
        elif block % _PART_TOKENS:
            reasons.append(f"{name} blocks of {block} tokens; use a multiple of {_PART_TOKENS}")
    return reasons


def block_mass_gluon(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    block_q: int,
    block_kv: int,
    scale: float,
    *,
    config: MassConfig | None = None,
    only: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the (B, H, Nq, Nkv) float32 mass; see ``block_statistics.block_mass``.

    Beside it lives a transient (B, H, Sq / 16, Skv / min(block_kv, 128)) float32 buffer: 0.45 GB
    for 40 heads of 75600 tokens.

    Args:
        q: (B, H, Sq, D) bfloat16 or float16.
        k: (B, H, Skv, D).
        lse: (B, H, Sq) natural log-sum-exp.
        block_q: query tokens per block, a multiple of 16.
        block_kv: key tokens per block, a multiple of 16.
        scale: factor on the logits.
        config: CTA shape, by default the table's.
        only: (B, H, Nq) bool: nothing but the rows of those query blocks is written, to ``out``.
        out: (B, H, Nq, Nkv) float32, contiguous, or None for a new tensor.
    """
    from vidsparse.kernels.triton_mass_parts import join_mass_parts

    B, H, Sq, D = q.shape
    Skv, size = k.shape[2], max(64, padded_head_size(D))
    config = MASS_CONFIGS[size] if config is None else config
    Nq, Nkv = -(-Sq // block_q), -(-Skv // block_kv)
    mass = torch.empty(B, H, Nq, Nkv, dtype=torch.float32, device=q.device) if out is None else out
    part_kv = math.gcd(block_kv, config.tile_kv)
    parts = torch.empty(
        B, H, -(-Sq // (config.groups * _GROUP_ROWS)),
        -(-Skv // config.tile_kv) * (config.tile_kv // part_kv), config.groups * _GROUP_WARPS,
        dtype=torch.float32, device=q.device,
    )  # fmt: skip
    # Without flags the kernel never touches the last one.
    flags = parts if only is None else only.contiguous().view(torch.uint8)
    for heads in head_groups(q, k, lse.float().contiguous(), parts, flags):
        _launch(heads, config, part_kv, scale, block_q, only is not None)
    join_mass_parts(
        parts, mass, seq_q=Sq, block_q=block_q, parts_per_kv=block_kv // part_kv, only=only
    )
    return mass


def _launch(
    tensors: tuple[Tensor, ...],
    config: MassConfig,
    part_kv: int,
    scale: float,
    block_q: int,
    only: bool,
) -> None:
    from vidsparse.kernels.gluon_mass import mass_kernel

    q, k, lse, parts, flags = tensors
    heads, Sq, D = q.shape
    size, tiles = max(64, padded_head_size(D)), parts.shape[1]
    mass_kernel[(heads * tiles,)](
        gluon_descriptor(q, [1, _GROUP_ROWS, size]), gluon_descriptor(k, [1, config.tile_kv, size]),
        lse, parts, flags, scale * _LOG2_E, Sq, k.shape[1], tiles, block_q, -(-Sq // block_q),
        PART_KV=part_kv, GROUPS=config.groups, STAGES=config.stages, REGISTERS=config.registers,
        CUBIC_SHARE=config.cubic_share, ONLY=only,
        num_warps=4, maxnreg=config.max_registers,
    )  # fmt: skip
