"""Means of key blocks: what stands for a skipped block when attention compensates for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask, block_sizes
from vidsparse.kernels.block_statistics import block_means
from vidsparse.kernels.pooling import pooled_means


class KeyValueMeans(NamedTuple):
    """One key and one value for each key block.

    Args:
        k: (B, H, Nkv, D) mean keys, 0 for empty blocks.
        v: (B, H, Nkv, D) mean values.
        log_size: (B | 1, H | 1, Nkv) float32 natural logarithm of the tokens per block; -inf for
            empty blocks.
    """

    k: Tensor
    v: Tensor
    log_size: Tensor


def key_value_means(k: Tensor, v: Tensor, mask: BlockMask | RaggedBlockMask) -> KeyValueMeans:
    """Average the keys and values of each key block of a mask.

    Sums are taken in float32 and the means rounded to the dtype of k, like any other key: that
    costs what rounding the keys themselves costs, and less where a block's keys differ.

    Args:
        k: (B, H, Skv, D) floating, last dimension contiguous. A NaN reaches its block's mean, and
            through it every query that skips the block.
        v: (B, H, Skv, D).
        mask: its key blocks are averaged, kept or not.
    """
    if triton_is_native(k.device):
        from vidsparse.kernels.triton_block_means import key_value_means_triton

        return KeyValueMeans(*key_value_means_triton(k, v, mask), log_sizes(mask))
    if isinstance(mask, RaggedBlockMask):
        offsets = mask.kv_offsets
        k_mean, v_mean = (block_means(x, offsets=offsets).to(x.dtype) for x in (k, v))
        return KeyValueMeans(k_mean, v_mean, log_sizes(mask))
    edges = torch.arange(mask.num_kv_blocks + 1, dtype=torch.int32, device=k.device)
    edges = (edges * mask.block_kv).clamp_(max=mask.seq_kv)
    k_mean, v_mean = (pooled_means(x, edges, block=mask.block_kv)[0].to(x.dtype) for x in (k, v))
    return KeyValueMeans(k_mean, v_mean, log_sizes(mask))


def log_sizes(mask: BlockMask | RaggedBlockMask) -> Tensor:
    """Return the (B | 1, H | 1, Nkv) float32 logarithm of each key block's tokens."""
    if isinstance(mask, RaggedBlockMask):
        return mask.kv_offsets.diff().float().log()
    return block_sizes(mask.seq_kv, mask.block_kv, device=mask.device).float().log()[None, None]
