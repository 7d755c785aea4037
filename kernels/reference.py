"""Attention in a dozen readable lines: what every kernel here is compared with."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask, of_head
from vidsparse.kernels.ragged_block_mask import block_of_token


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask | None,
    *,
    scale: float | None = None,
    compute_dtype: torch.dtype = torch.float64,
    compensate: bool = False,
    tangents: Tensor | None = None,
) -> AttentionOutput:
    """Attend with a token-level mask, one head at a time.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Skv, D).
        v: (B, H, Skv, D).
        mask: kept blocks; None keeps everything.
        scale: factor on the logits, 1 / sqrt(D) by default.
        compute_dtype: float64 or float32; ``out`` comes in this dtype, ``lse`` in float32.
        compensate: also attend to the mean key and value of every skipped block, with the
            logarithm of its size added to the logit.
        tangents: (B, H, Nkv, D) queries whose weights these means are taken with, or None.

    Returns:
        Output in ``compute_dtype`` (not in q's dtype: rounding is the caller's business).
    """
    B, H, Sq, D = q.shape
    scale = D**-0.5 if scale is None else scale
    compensate = compensate and mask is not None and not bool(mask.to_dense().all())
    keep = None if mask is None else mask.token_mask().expand(B, H, Sq, k.shape[2])
    out = torch.empty(B, H, Sq, v.shape[-1], dtype=compute_dtype, device=q.device)
    lse = torch.empty(B, H, Sq, dtype=torch.float32, device=q.device)
    for b in range(B):
        for h in range(H):
            keys, values = k[b, h].to(compute_dtype), v[b, h].to(compute_dtype)
            scores = q[b, h].to(compute_dtype) @ keys.mT * scale
            if keep is not None:
                scores = scores.masked_fill(~keep[b, h], -torch.inf)
            if compensate and mask is not None:
                logits = torch.zeros_like(scores[:1]).expand(mask.num_kv_blocks, -1)
                if tangents is not None:
                    logits = tangents[b, h].to(compute_dtype) @ keys.mT * scale
                average, bias = _skipped_blocks(mask, b, h, logits)
                skipped = q[b, h].to(compute_dtype) @ (average @ keys).mT * scale + bias
                scores = torch.cat([scores, skipped], -1)
                values = torch.cat([values, average @ values])
            lse[b, h] = torch.logsumexp(scores, -1)
            # Rows without keys give 0 / 0: defined as 0.
            empty = scores.isneginf().all(-1, keepdim=True)
            out[b, h] = torch.softmax(scores, -1).masked_fill(empty, 0.0) @ values
    return AttentionOutput(out, lse)


def _skipped_blocks(
    mask: BlockMask | RaggedBlockMask, b: int, h: int, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (Nkv, Skv) averages over blocks and (Sq, Nkv) log weights, -inf where kept or empty.

    ``logits`` (Nkv, Skv) are those of the blocks' tangents.
    """
    kept = of_head(kept_by_queries(mask), b, h)
    columns = torch.arange(mask.seq_kv, device=mask.device)
    if isinstance(mask, RaggedBlockMask):
        columns = block_of_token(of_head(mask.kv_offsets, b, h), mask.seq_kv)
    else:
        columns = columns // mask.block_kv
    member = columns == torch.arange(kept.shape[1], device=mask.device)[:, None]
    empty = ~member.any(-1, keepdim=True)
    within = logits.masked_fill(~member, -torch.inf)
    average = torch.softmax(within, -1).masked_fill(empty, 0.0)
    # exp(bias + q.k_mean) is the block's weight for its tangent, and has the same slope there.
    bias = torch.logsumexp(within, -1) - (average * logits).sum(-1)
    return average, bias.expand(kept.shape).masked_fill(kept, -torch.inf)


def kept_by_queries(mask: BlockMask | RaggedBlockMask) -> Tensor:
    """Return (B | 1, H | 1, Sq, Nkv) bool: which key blocks each query token attends to."""
    kept = mask.to_dense()
    if isinstance(mask, BlockMask):
        return kept.repeat_interleave(mask.block_q, 2)[:, :, : mask.seq_q]
    rows = block_of_token(mask.q_offsets, mask.seq_q).expand(*kept.shape[:2], -1)
    return kept.gather(2, rows[..., None].expand(*rows.shape, kept.shape[3]))


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
