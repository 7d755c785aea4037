"""What attention returns, and how the results over disjoint keys are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionOutput:
    """Result of one attention call.

    Args:
        out: (B, H, Sq, D) in the dtype of q; 0 in rows that attend to nothing.
        lse: (B, H, Sq) float32, natural logarithm of the softmax denominator; -inf in rows that
            attend to nothing. None if it was not computed.
        block_stats: (B, H, Nq, Nkv) float32 statistic of each block (see
            ``block_sparse_attention``), or None.
    """

    out: Tensor
    lse: Tensor | None
    block_stats: Tensor | None = None


def merge_attention(outputs: Sequence[AttentionOutput]) -> AttentionOutput:
    """Join attention over disjoint sets of keys into attention over their union.

    Args:
        outputs: results of the same queries, each with its LSE.

    Raises:
        ValueError: the sequence is empty, or an output has no LSE.
    """
    lses = [output.lse for output in outputs if output.lse is not None]
    if not outputs or len(lses) != len(outputs):
        raise ValueError(
            f"merging needs at least one output, each with its lse; {len(outputs)} "
            f"given, {len(lses)} with lse"
        )
    lse = torch.logsumexp(torch.stack(lses), 0)
    # A row without keys anywhere has lse = -inf everywhere: its weights are 0, not exp(nan).
    base = torch.where(lse.isneginf(), 0.0, lse)
    total = torch.zeros_like(outputs[0].out, dtype=torch.float32)
    for output, part in zip(outputs, lses, strict=True):
        total += output.out.float() * torch.exp(part - base)[..., None]
    return AttentionOutput(total.to(outputs[0].out.dtype), lse)
