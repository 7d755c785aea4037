"""Check a sparse call at full size: sampled rows against exact attention under the plan's mask."""

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask, of_head
from vidsparse.kernels.ragged_block_mask import block_of_token
from vidsparse.layout import inverse_order
from vidsparse.plan import AttentionPlan

# Relative error of a row's output: bfloat16 keeps 8 bits, sums of many are better than that.
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4}


def check_sampled_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    output: AttentionOutput,
    *,
    rows: int = 32,
    heads: int = 4,
) -> None:
    """Compare some rows of some heads with float64 attention to exactly what the plan says.

    Args:
        q: (B, H, S, D) in natural order.
        k: (B, H, S, D).
        v: (B, H, S, D).
        plan: what the output was computed with.
        output: restored to the natural order.
        rows: query tokens checked per head, spread over the sequence.
        heads: heads checked, spread over B * H.

    Raises:
        AssertionError: a row is off by more than rounding.
    """
    B, H, S, D = q.shape
    places = torch.linspace(0, S - 1, min(rows, S), device=q.device).long()
    for index in torch.linspace(0, B * H - 1, min(heads, B * H)).long().tolist():
        b, h = divmod(index, H)
        kept, columns = kept_blocks(plan, places, b, h)
        keys, values = k[b, h].double(), v[b, h].double()
        scores = q[b, h, places].double() @ keys.T * D**-0.5
        scores = scores.masked_fill(~kept[:, columns], -torch.inf)
        if plan.compensate:
            tangents = torch.zeros(kept.shape[1], D, dtype=torch.float64, device=q.device)
            if plan.tangents is not None:
                tangents = plan.tangents[b, h].double()
            logits = (keys * tangents[columns]).sum(-1) * D**-0.5
            weights = torch.exp(logits - logits.max())[:, None]
            total = torch.zeros_like(tangents[:, :1]).index_add_(0, columns, weights)
            keys, means = (
                torch.zeros_like(tangents).index_add_(0, columns, x * weights)
                / total.clamp(min=1e-300)
                for x in (keys, values)
            )
            bias = total[:, 0].log() + logits.max() - (keys * tangents).sum(-1) * D**-0.5
            skipped = q[b, h, places].double() @ keys.T * D**-0.5 + bias
            scores = torch.cat([scores, skipped.masked_fill(kept, -torch.inf)], -1)
            values = torch.cat([values, means])
        exact = torch.softmax(scores, -1).nan_to_num(0) @ values
        error = (output.out[b, h, places].double() - exact).norm(dim=-1)
        worst = float((error / exact.norm(dim=-1).clamp(min=1e-9)).max())
        # Written so that NaN fails.
        if not worst <= _TOLERANCE[q.dtype]:
            raise AssertionError(f"head {h} of row {b}: relative error {worst:.3g} of the output")


def kept_blocks(plan: AttentionPlan, places: Tensor, b: int, h: int) -> tuple[Tensor, Tensor]:
    """Return what a plan keeps for some queries of one head.

    Args:
        plan: the plan.
        places: (R,) natural indices of queries.
        b: batch row.
        h: head.

    Returns:
        Kept key blocks (R, Nkv) bool, and the block (S,) of each key, keys in natural order.
    """
    rows, columns = _blocks_of_tokens(plan.mask, b, h, places.device)
    kept = of_head(plan.mask.to_dense(), b, h)
    if plan.q_order is not None:
        places = inverse_order(of_head(plan.q_order, b, h))[places].long()
    if plan.kv_order is not None:
        columns = columns[inverse_order(of_head(plan.kv_order, b, h)).long()]
    return kept[rows[places]], columns


def _blocks_of_tokens(
    mask: BlockMask | RaggedBlockMask, b: int, h: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the block of each query position (Sq,) and of each key position (Skv,)."""
    if isinstance(mask, BlockMask):
        return (
            torch.arange(mask.seq_q, device=device) // mask.block_q,
            torch.arange(mask.seq_kv, device=device) // mask.block_kv,
        )
    q_offsets, kv_offsets = of_head(mask.q_offsets, b, h), of_head(mask.kv_offsets, b, h)
    return block_of_token(q_offsets, mask.seq_q), block_of_token(kv_offsets, mask.seq_kv)
