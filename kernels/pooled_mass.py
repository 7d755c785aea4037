"""Estimate the attention mass of key blocks from a few pooled queries per query block."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.launch import padded_head_size

# Pooled queries of one query block that the Triton twin takes, and its widest head.
GROUPS = (1, 2, 4, 8, 16, 32, 64)
_WIDEST_HEAD = 256
# Logits that the torch path holds at once.
_ENTRIES = 1 << 26


def pooled_mass(q: Tensor, k: Tensor, log_sizes: Tensor, *, group: int) -> Tensor:
    """Attend from pooled queries to mean keys; average over the pools of each query block.

    Args:
        q: (B, H, M, D) pooled queries, ``group`` of them in a row per query block; the last block
            may have fewer.
        k: (B, H, N, D) mean keys.
        log_sizes: (N,) float32 logarithm of the keys that each mean stands for.
        group: pooled queries per block, one of ``GROUPS``.

    Returns:
        (B, H, ceil(M / group), N) float32; each row sums to 1. No (M, N) map is kept on a GPU.

    Raises:
        ValueError: shapes do not fit together, or ``group`` is unknown.
    """
    if group not in GROUPS:
        raise ValueError(f"group={group} pooled queries per block; use one of {GROUPS}")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3] or len(log_sizes) != k.shape[2]:
        raise ValueError(
            f"q, k, log_sizes have shapes {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(log_sizes.shape)}; give (B, H, M, D), (B, H, N, D), (N,)"
        )
    if triton_is_native(q.device) and padded_head_size(q.shape[3]) <= _WIDEST_HEAD:
        from vidsparse.kernels.triton_pooled_mass import pooled_mass_triton

        return pooled_mass_triton(q, k, log_sizes, group=group)
    B, H, M, D = q.shape
    mass = torch.empty(B * H, -(-M // group), k.shape[2], device=q.device)
    heads = max(1, _ENTRIES // (M * k.shape[2]))
    wide = q.flatten(0, 1).float() * D**-0.5, k.flatten(0, 1).float()
    for start in range(0, B * H, heads):
        part = slice(start, start + heads)
        rows = torch.softmax(wide[0][part] @ wide[1][part].mT + log_sizes, -1)
        mass[part] = group_means(rows, group)
    return mass.view(B, H, *mass.shape[1:])


def group_means(x: Tensor, group: int) -> Tensor:
    """Average (..., M, D) over every ``group`` rows; the last group may be smaller."""
    whole = x.shape[-2] // group * group
    parts = [x[..., :whole, :].unflatten(-2, (-1, group)).mean(-2)]
    if whole < x.shape[-2]:
        parts.append(x[..., whole:, :].mean(-2, keepdim=True))
    return torch.cat(parts, -2)
