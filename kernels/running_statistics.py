"""What attention sees of a tile while it attends: its maximum or mass against the keys so far."""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask

_LOG2_E = math.log2(math.e)
# Logits of one step of the torch path.
_LOGITS = 1 << 22


class RunningStat(enum.StrEnum):
    """Statistics of kept blocks that need nothing but the call itself.

    Both compare a block with the keys that its query block visited up to and including it, in the
    order of the implementation: along the list or against it. The first block visited is compared
    with all visited keys instead, or it would always look large.

    MAX is the largest difference, over the rows, of the block's largest base-2 logit to the row's
    running maximum: at most 0, and 0 where the block raises the maximum of a row. A block that is
    at most t < 0 holds, per row and key, at most 2^t of the row's largest weight.

    MASS is the sum over the rows of the block's share of the softmax so far. It never falls below
    the block's share of the whole softmax over kept keys.

    Source: MAX is LiteAttention's test, arXiv:2511.11062, equation 7, where the first block is
    always kept.
    """

    MAX = "max"
    MASS = "mass"


def empty_value(stat: RunningStat) -> float:
    """Return what blocks that are not kept, and rows outside, contribute."""
    return -math.inf if stat is RunningStat.MAX else 0.0


def running_statistic(
    q: Tensor, k: Tensor, mask: BlockMask, stat: RunningStat, *, scale: float | None = None
) -> Tensor:
    """Compute a running statistic apart from attention, lists visited from their start.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Skv, D).
        mask: kept blocks; entries may stand in any order.
        stat: which one.
        scale: factor on the logits, 1 / sqrt(D) by default.

    Returns:
        (B, H, Nq, Nkv) float32; ``empty_value(stat)`` for blocks that are not kept.
    """
    B, H, _, D = q.shape
    factor = (D**-0.5 if scale is None else scale) * _LOG2_E
    counts = mask.kv_num_blocks.expand(B, H, -1)
    lists = mask.kv_indices.expand(B, H, -1, -1)
    shape = (B, H, mask.num_q_blocks, mask.num_kv_blocks)
    out = torch.empty(shape, dtype=torch.float32, device=q.device)
    rows = max(1, _LOGITS // (k.shape[2] * mask.block_q))
    for b in range(B):
        for h in range(H):
            keys = k[b, h].float() * factor
            for first in range(0, shape[2], rows):
                part = slice(first, first + rows)
                queries = q[b, h, first * mask.block_q : (first + rows) * mask.block_q]
                tiles = _tile_values(queries, keys, mask, stat)
                out[b, h, part] = _along_lists(tiles, counts[b, h, part], lists[b, h, part], stat)
    return out


def _tile_values(q: Tensor, k: Tensor, mask: BlockMask, stat: RunningStat) -> Tensor:
    """Return (N, block_q, Nkv), each row's maximum or log2-sum of each tile; NaN: rows outside."""
    logits = q.float() @ k.mT
    missing = mask.num_kv_blocks * mask.block_kv - len(k)
    logits = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
    logits = logits.unflatten(-1, (mask.num_kv_blocks, mask.block_kv))
    tiles = logits.amax(-1)
    if stat is RunningStat.MASS:
        tiles = torch.logsumexp(logits * math.log(2), -1) * _LOG2_E
    tiles = torch.nn.functional.pad(tiles, (0, 0, 0, -len(q) % mask.block_q), value=torch.nan)
    by_block: Tensor = tiles.unflatten(0, (-1, mask.block_q))
    return by_block


def _along_lists(tiles: Tensor, counts: Tensor, lists: Tensor, stat: RunningStat) -> Tensor:
    """Compare each row's tiles with those before them: (N, Nkv) from (N, block_q, Nkv)."""
    N, rows, Nkv = tiles.shape
    slots = torch.arange(Nkv, device=tiles.device)
    kept = (slots < counts[:, None]) & (lists >= 0) & (lists < Nkv)
    order = torch.where(kept, lists, 0).long()
    visited = tiles.gather(-1, order[:, None].expand(N, rows, Nkv))
    visited = visited.masked_fill(~kept[:, None], -torch.inf)
    inside = ~tiles[:, :, :1].isnan()
    if stat is RunningStat.MAX:
        so_far = visited.cummax(-1).values
    else:
        so_far = (visited * math.log(2)).logcumsumexp(-1) * _LOG2_E
    so_far[..., 0] = so_far[..., -1]
    gaps = (visited - so_far).masked_fill(~(inside & kept[:, None]), -torch.inf)
    values = gaps.amax(1) if stat is RunningStat.MAX else gaps.exp2().sum(1)
    # Column Nkv collects what is not a kept block and is cut off again.
    target = torch.where(kept, lists, Nkv).long()
    found = torch.full((N, Nkv + 1), empty_value(stat), dtype=torch.float32, device=tiles.device)
    return found.scatter_(-1, target, values)[:, :Nkv]
