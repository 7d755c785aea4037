"""Collect what attention kernels measure about their tiles while they attend."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask


def dense_stats(parts: Tensor, mask: BlockMask) -> Tensor:
    """Sum masses per block and bring list slots to block ids.

    Args:
        parts: (B, H, query tiles, list slots, parts of a tile) float32; unused slots are ignored.
        mask: the lists; each query block owns the same number of consecutive tiles.

    Returns:
        (B, H, Nq, Nkv) float32, 0 for blocks that are not kept.
    """
    Nq, Nkv = mask.num_q_blocks, mask.num_kv_blocks
    by_slot = parts.unflatten(2, (Nq, -1)).sum((3, 5)) if parts.shape[2] > Nq else parts.sum(-1)
    slots = torch.arange(Nkv, device=parts.device)
    valid = (slots < mask.kv_num_blocks[..., None]) & (mask.kv_indices >= 0)
    # Column Nkv collects what is not a kept block and is cut off again.
    target = torch.where(valid, mask.kv_indices, Nkv).clamp(max=Nkv).long()
    dense = torch.zeros(*by_slot.shape[:3], Nkv + 1, device=parts.device)
    return dense.scatter_(-1, target.expand(by_slot.shape), by_slot)[..., :Nkv]
