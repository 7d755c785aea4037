"""How far the output moves when one block is skipped and compensated for."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.block_means import KeyValueMeans
from vidsparse.kernels.launch import padded_head_size

# Bytes of the (heads, rows, key blocks, D) numerators that the torch path holds at once.
_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}
# What the Triton twin takes.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDEST_HEAD = 128


def block_errors(
    q: Tensor, k: Tensor, v: Tensor, means: KeyValueMeans, *, block_q: int, block_kv: int
) -> Tensor:
    """Return how far the output moves when one block is skipped and compensated.

    On a GPU it costs about two dense attentions: one that finds the output, one pass beside it.
    There weights are rounded to the inputs' dtype, as attention rounds them, and so is the output.

    Args:
        q: (B, H, S, D) queries, last dimension contiguous.
        k: (B, H, S, D) keys, same dtype and device.
        v: (B, H, S, D) values, same dtype and device.
        means: what stands for each key block.
        block_q: query tokens per block, the last one may be partial.
        block_kv: key tokens per block, the last one may be partial.

    Returns:
        (B, H, Nq, Nkv) float32, the root of the mean squared error over the queries of a block, to
        first order in the block's own error.

    Raises:
        ValueError: the blocks are empty, or are not those of ``means``.
    """
    _check(q, means, block_q, block_kv)
    fits = padded_head_size(q.shape[3]) <= _WIDEST_HEAD and q.dtype in _DTYPES
    if triton_is_native(q.device) and fits:
        from vidsparse.kernels.triton_block_errors import block_errors_triton

        return block_errors_triton(q, k, v, means, block_q=block_q, block_kv=block_kv)
    return _block_errors_torch(q, k, v, means, block_q, block_kv)


def _check(q: Tensor, means: KeyValueMeans, block_q: int, block_kv: int) -> None:
    if min(block_q, block_kv) < 1:
        raise ValueError(f"block_q={block_q}, block_kv={block_kv} must be at least 1")
    B, H, S, D = q.shape
    expected = (B, H, -(-S // block_kv), D)
    if means.k.shape != expected or means.v.shape != expected:
        raise ValueError(
            f"means have shapes {tuple(means.k.shape)} and {tuple(means.v.shape)}; "
            f"{S} keys in blocks of {block_kv} have {expected}"
        )


def _block_errors_torch(
    q: Tensor, k: Tensor, v: Tensor, means: KeyValueMeans, block_q: int, block_kv: int
) -> Tensor:
    """Take all differences in float32, a few heads at a time."""
    lead, S, D = q.shape[:2], q.shape[2], q.shape[3]
    q, k, v, k_mean, v_mean = (x.flatten(0, 1).float() for x in (q, k, v, *means[:2]))
    bias = means.log_size.expand(*lead, -1).flatten(0, 1)
    k, v = (_in_blocks(x, block_kv) for x in (k, v))
    inside = (
        _in_blocks(torch.ones(1, S, 1, dtype=torch.float32, device=q.device), block_kv)[..., 0] > 0
    )
    Nkv = k.shape[1]
    room = _BYTES.get(q.device.type, 1 << 26) // (4 * Nkv * block_q * (2 * D + block_kv))
    heads = max(1, min(len(q), room))
    parts = []
    for start in range(0, len(q), heads):
        part = slice(start, start + heads)
        rows = [
            _row_errors(x, k[part], v[part], inside, k_mean[part], v_mean[part], bias[part])
            for x in (q[part] * D**-0.5).split(block_q, 1)
        ]
        parts.append(torch.stack(rows, 1))
    return torch.cat(parts).view(*lead, -1, Nkv)


def _row_errors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inside: Tensor,
    k_mean: Tensor,
    v_mean: Tensor,
    bias: Tensor,
) -> Tensor:
    """Return (G, Nkv) errors of one query block: q (G, R, D), k and v (G, Nkv, n, D)."""
    logits = torch.einsum("grd,gjnd->gjrn", q, k).masked_fill(~inside[:, :, None], -torch.inf)
    most = logits.amax((1, 3), keepdim=True)
    weights = (logits - most).exp()
    numerators, masses = weights @ v, weights.sum(-1, keepdim=True)  # (G, Nkv, R, D), (..., 1)
    total = masses.sum(1, keepdim=True)
    out = numerators.sum(1, keepdim=True) / total
    mean_logits = (q @ k_mean.mT + bias[:, None]).mT[..., None]
    mean_weights = (mean_logits - most).exp()
    numerators -= mean_weights * v_mean[:, :, None]
    numerators -= out * (masses - mean_weights)
    return (numerators / total).square_().sum(-1).mean(-1).sqrt()


def _in_blocks(x: Tensor, block: int) -> Tensor:
    """Cut (G, S, D) into (G, N, block, D), the last block filled up with zeros."""
    blocks = -(-x.shape[1] // block)
    x = torch.nn.functional.pad(x, (0, 0, 0, blocks * block - x.shape[1]))
    return x.view(x.shape[0], blocks, block, x.shape[2])
