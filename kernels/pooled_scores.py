"""Score key blocks with a few pooled queries per query block: mass, and mass times spread.

The number of pools times key blocks is a few times larger than the map of blocks: on a GPU it never
exists, only its averages over the pools of each query block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.launch import padded_head_size

# Pooled queries of one query block that the Triton twin takes, and its widest head.
GROUPS = (1, 2, 4, 8, 16, 32, 64)
_WIDEST_HEAD = 128
# Logits that the torch path holds at once.
_ENTRIES = 1 << 26


class PooledScores(NamedTuple):
    """What pooled queries say about key blocks.

    Args:
        mass: (B, H, Nq, N) in the queries' dtype, share of each key block; rows sum to 1.
        spread: (B, H, Nq, N), mass times the variance of its logits, float32 for queries in it,
            else bfloat16, which float16 has not the range of; None if not asked for.
    """

    mass: Tensor
    spread: Tensor | None


def pooled_scores(
    q: Tensor,
    k: Tensor,
    log_sizes: Tensor,
    *,
    group: int,
    rows: Tensor | None = None,
    variances: Tensor | None = None,
    weights: Tensor | None = None,
    centre: Tensor | None = None,
) -> PooledScores:
    """Attend from pooled queries to mean keys; average over the pools of each query block.

    Args:
        q: (B, H, M, D) pooled queries, ``group`` of them in a row per query block; the last block
            may have fewer.
        k: (B, H, N, D) mean keys.
        log_sizes: (N,) float32 logarithm of the keys that each mean stands for.
        group: pooled queries per block, one of ``GROUPS``.
        rows: (M,) int32, where the pooled queries are in ``q``, which is then (B, H, S, D); None
            for all of them in order.
        variances: (B, H, N, D) of the keys within each block, to ask for ``spread``.
        weights: (B, H, N) float32, factors on the key blocks' ``spread``; None is 1.
        centre: (B, H, D) query around which logits vary; None is 0.

    Returns:
        Averages over the pools; ``spread`` weighs each pool's variance, channels taken as
        independent, with that pool's mass.

    Raises:
        ValueError: shapes do not fit together, or ``group`` is unknown.
    """
    _check(q, k, log_sizes, group, variances)
    if weights is None:
        weights = torch.ones((), dtype=torch.float32, device=q.device).expand(k.shape[:3])
    if centre is None:
        centre = torch.zeros_like(q[:, :, 0])
    if triton_is_native(q.device) and padded_head_size(q.shape[3]) <= _WIDEST_HEAD:
        from vidsparse.kernels.triton_pooled_scores import pooled_scores_triton

        return PooledScores(
            *pooled_scores_triton(q, rows, k, log_sizes, variances, weights, centre, group=group)
        )
    q = q if rows is None else q.index_select(2, rows)
    B, H, M, D = q.shape
    heads = max(1, _ENTRIES // (M * k.shape[2]))
    q, k, centre = (x.flatten(0, 1) for x in (q, k, centre))
    means: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, B * H, heads):
        some = slice(start, start + heads)
        pools = q[some].float() * D**-0.5
        mass = torch.softmax(pools @ k[some].float().mT + log_sizes, -1)
        means[0].append(group_means(mass, group).to(q.dtype))
        if variances is not None:
            away = (pools - centre[some, None].float() * D**-0.5).square()
            mass *= away @ variances.flatten(0, 1)[some].float().mT
            mass *= weights.flatten(0, 1)[some, None]
            means[1].append(group_means(mass, group).to(spread_dtype(q)))
    masses, spreads = (torch.cat(x).unflatten(0, (B, H)) if x else None for x in means)
    if masses is None:
        raise ValueError(f"q has shape {(B, H, M, D)}; every dimension must be at least 1")
    return PooledScores(masses, spreads)


def spread_dtype(q: Tensor) -> torch.dtype:
    """Return what ``spread`` is for queries of a dtype."""
    return torch.bfloat16 if q.element_size() == 2 else torch.float32


def group_means(x: Tensor, group: int) -> Tensor:
    """Average (..., M, D) over every ``group`` rows, in float32; the last group may be smaller."""
    whole = x.shape[-2] // group * group
    parts = [x[..., :whole, :].unflatten(-2, (-1, group)).mean(-2, dtype=torch.float32)]
    if whole < x.shape[-2]:
        parts.append(x[..., whole:, :].mean(-2, keepdim=True, dtype=torch.float32))
    return torch.cat(parts, -2)


def _check(q: Tensor, k: Tensor, log_sizes: Tensor, group: int, variances: Tensor | None) -> None:
    if group not in GROUPS:
        raise ValueError(f"group={group} pooled queries per block; use one of {GROUPS}")
    fits = q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    if variances is not None:
        fits &= variances.shape == k.shape
    if not fits or len(log_sizes) != k.shape[2]:
        raise ValueError(
            f"q, k, log_sizes have shapes {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(log_sizes.shape)}; give (B, H, M, D), (B, H, N, D), (N,), and variances as k"
        )
