"""How much of the true attention map a plan keeps: exact, over every query."""

import torch
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask, block_sizes, of_head
from vidsparse.kernels.block_statistics import block_mass
from vidsparse.kernels.permute import permute_tokens
from vidsparse.methods.budget import flat_top_k
from vidsparse.plan import AttentionPlan


def recall(q: Tensor, k: Tensor, plan: AttentionPlan) -> Tensor:
    """Return the share of attention mass in a plan's blocks, the mean over all queries.

    One head at a time and in chunks of rows: the map itself never exists as a whole.

    Args:
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        plan: token orders and mask.

    Returns:
        (B, H) float32 in [0, 1], 1 for a mask that keeps everything.
    """
    B, H, S, _ = q.shape
    kept = torch.empty(B, H, device=q.device)
    for b in range(B):
        for h in range(H):
            chosen = of_head(plan.mask.to_dense(), b, h)
            kept[b, h] = (_head_mass(q, k, plan, b, h) * chosen).sum() / S
    return kept


def plan_mass(q: Tensor, k: Tensor, plan: AttentionPlan) -> Tensor:
    """Return the true attention mass of every block of a plan, kept or not.

    Args:
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        plan: token orders and blocks.

    Returns:
        (B, H, Nq, Nkv) float32; each row sums to the tokens of its query block.
    """
    B, H = q.shape[:2]
    rows = [torch.cat([_head_mass(q, k, plan, b, h) for h in range(H)], 1) for b in range(B)]
    return torch.cat(rows)


def oracle_recall(q: Tensor, k: Tensor, density: float, block_q: int, block_kv: int) -> Tensor:
    """Return the most mass that blocks of the natural order can hold at a density.

    Every row keeps at least its best block; nothing else is forced.

    Args:
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        density: kept share of query-key pairs, in (0, 1].
        block_q: query tokens per block.
        block_kv: key tokens per block.

    Returns:
        (B, H) float32 in [0, 1].
    """
    rows = block_sizes(q.shape[2], block_q, device=q.device).long()
    columns = block_sizes(k.shape[2], block_kv, device=k.device).long()
    best = torch.empty(q.shape[:2], device=q.device)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            head = (slice(b, b + 1), slice(h, h + 1))
            mass = block_mass(q[head], k[head], block_q=block_q, block_kv=block_kv)
            best[b, h] = (mass * flat_top_k(mass, density, rows, columns)).sum() / q.shape[2]
    return best


def _head_mass(q: Tensor, k: Tensor, plan: AttentionPlan, b: int, h: int) -> Tensor:
    """Return (1, 1, Nq, Nkv) float32, the mass of one head's blocks."""
    head = (slice(b, b + 1), slice(h, h + 1))
    q = _permuted(q[head], plan.q_order, b, h)
    k = _permuted(k[head], plan.kv_order, b, h)
    mask = plan.mask
    if isinstance(mask, BlockMask):
        return block_mass(q, k, block_q=mask.block_q, block_kv=mask.block_kv)
    q_offsets, kv_offsets = (
        of_head(x, b, h)[None, None] for x in (mask.q_offsets, mask.kv_offsets)
    )
    return block_mass(q, k, q_offsets=q_offsets, kv_offsets=kv_offsets)


def _permuted(x: Tensor, order: Tensor | None, b: int, h: int) -> Tensor:
    return x if order is None else permute_tokens(x, of_head(order, b, h)[None, None])
