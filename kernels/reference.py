"""Attention in a dozen readable lines: what every kernel here is compared with."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask | None,
    *,
    scale: float | None = None,
    compute_dtype: torch.dtype = torch.float64,
) -> AttentionOutput:
    """Attend with a token-level mask, one head at a time.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Skv, D).
        v: (B, H, Skv, D).
        mask: kept blocks; None keeps everything.
        scale: factor on the logits, 1 / sqrt(D) by default.
        compute_dtype: float64 or float32; ``out`` comes in this dtype, ``lse`` in float32.

    Returns:
        Output in ``compute_dtype`` (not in q's dtype: rounding is the caller's business).
    """
    B, H, Sq, D = q.shape
    scale = D**-0.5 if scale is None else scale
    keep = None if mask is None else mask.token_mask().expand(B, H, Sq, k.shape[2])
    out = torch.empty(B, H, Sq, v.shape[-1], dtype=compute_dtype, device=q.device)
    lse = torch.empty(B, H, Sq, dtype=torch.float32, device=q.device)
    for b in range(B):
        for h in range(H):
            scores = q[b, h].to(compute_dtype) @ k[b, h].to(compute_dtype).mT * scale
            if keep is not None:
                scores = scores.masked_fill(~keep[b, h], -torch.inf)
            lse[b, h] = torch.logsumexp(scores, -1)
            # Rows without keys give 0 / 0: defined as 0.
            out[b, h] = torch.softmax(scores, -1).nan_to_num(0.0) @ v[b, h].to(compute_dtype)
    return AttentionOutput(out, lse)


def block_mass_reference(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    q_offsets: Tensor,
    kv_offsets: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """Sum softmax weights over each block: float64 twin of ``block_statistics.block_mass``.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Skv, D).
        lse: (B, H, Sq) natural log-sum-exp that normalises each row.
        q_offsets: (Nq + 1,) first token of each query block.
        kv_offsets: (Nkv + 1,) first token of each key block.
        scale: factor on the logits, 1 / sqrt(D) by default.

    Returns:
        (B, H, Nq, Nkv) float64.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.exp(q.double() @ k.double().mT * scale - lse.double()[..., None])
    rows = [weights[:, :, a:b].sum(2) for a, b in itertools.pairwise(q_offsets)]
    by_row = torch.stack(rows, 2)
    columns = [by_row[..., a:b].sum(-1) for a, b in itertools.pairwise(kv_offsets)]
    return torch.stack(columns, -1)
