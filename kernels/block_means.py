"""Means of key blocks: what stands for a skipped block when attention compensates for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask, block_sizes
from vidsparse.kernels.block_statistics import block_means
from vidsparse.kernels.pooling import pooled_means
from vidsparse.kernels.ragged_block_mask import block_of_token


class KeyValueMeans(NamedTuple):
    """One key and one value for each key block.

    Args:
        k: (B, H, Nkv, D) mean keys, 0 for empty blocks.
        v: (B, H, Nkv, D) mean values.
        log_size: (B | 1, H | 1, Nkv) float32 natural logarithm of the tokens per block, or of what
            they weigh with tangents; -inf for empty blocks.
    """

    k: Tensor
    v: Tensor
    log_size: Tensor


def key_value_means(
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask,
    tangents: Tensor | None = None,
    *,
    scale: float | None = None,
) -> KeyValueMeans:
    """Average the keys and values of each key block of a mask.

    Sums are taken in float32 and the means rounded to the dtype of k, like any other key. In
    bfloat16 that moves outputs by 0.1 to 0.2 %, as rounding the outputs does.

    Args:
        k: (B, H, Skv, D) floating, last dimension contiguous. A NaN reaches its block's mean, and
            through it every query that skips the block.
        v: (B, H, Skv, D).
        mask: its key blocks are averaged, kept or not.
        tangents: (B, H, Nkv, D) float32, one query for each key block. Tokens are then weighed as
            this query weighs them, and so is the block: its weight, the weight's slope in q and
            its value are those of the block for queries like the tangent, and nearly so around it.
            None weighs all tokens alike, as a query of 0 does.
        scale: factor on the logits of tangents, 1 / sqrt(D) by default.
    """
    if triton_is_native(k.device):
        from vidsparse.kernels.triton_block_means import key_value_means_triton, tangent_means

        if tangents is not None:
            scale = k.shape[3] ** -0.5 if scale is None else scale
            return KeyValueMeans(*tangent_means(k, v, mask, tangents, scale))
        return KeyValueMeans(*key_value_means_triton(k, v, mask), log_sizes(mask))
    if tangents is not None:
        return _weighted_means(k, v, mask, tangents, k.shape[3] ** -0.5 if scale is None else scale)
    if isinstance(mask, RaggedBlockMask):
        offsets = mask.kv_offsets
        k_mean, v_mean = (block_means(x, offsets=offsets).to(x.dtype) for x in (k, v))
        return KeyValueMeans(k_mean, v_mean, log_sizes(mask))
    edges = torch.arange(mask.num_kv_blocks + 1, dtype=torch.int32, device=k.device)
    edges = (edges * mask.block_kv).clamp_(max=mask.seq_kv)
    k_mean, v_mean = (pooled_means(x, edges, block=mask.block_kv)[0].to(x.dtype) for x in (k, v))
    return KeyValueMeans(k_mean, v_mean, log_sizes(mask))


def _weighted_means(
    k: Tensor, v: Tensor, mask: BlockMask | RaggedBlockMask, tangents: Tensor, scale: float
) -> KeyValueMeans:
    if isinstance(mask, RaggedBlockMask):
        blocks = block_of_token(mask.kv_offsets, mask.seq_kv)
    else:
        blocks = torch.arange(mask.seq_kv, device=k.device)[None, None] // mask.block_kv
    blocks = blocks.expand(k.shape[:3])
    rows = blocks[..., None].expand(k.shape)
    logits = (k.float() * tangents.float().gather(2, rows)).sum(-1) * scale
    most = torch.full(tangents.shape[:3], -torch.inf, dtype=torch.float32, device=k.device)
    most = most.scatter_reduce(2, blocks, logits, "amax")
    weights = (logits - most.gather(2, blocks)).exp()
    total = torch.zeros_like(most).scatter_add_(2, blocks, weights)
    weights = (weights / total.gather(2, blocks))[..., None]
    k_mean, v_mean = (
        torch.zeros_like(tangents, dtype=torch.float32)
        .scatter_add_(2, rows, x.float() * weights)
        .to(x.dtype)
        for x in (k, v)
    )
    # Against the mean as rounded: the weight at the tangent stays exact.
    log_weight = most + total.log() - (k_mean.float() * tangents.float()).sum(-1) * scale
    return KeyValueMeans(k_mean, v_mean, log_weight)


def log_sizes(mask: BlockMask | RaggedBlockMask) -> Tensor:
    """Return the (B | 1, H | 1, Nkv) float32 logarithm of each key block's tokens."""
    if isinstance(mask, RaggedBlockMask):
        return mask.kv_offsets.diff().float().log()
    return block_sizes(mask.seq_kv, mask.block_kv, device=mask.device).float().log()[None, None]
