"""8-bit attention in readable torch: the rounding of the kernels, none of their speed."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.quantize import QuantizedQKV, value_order

# Weights are scaled by this before they are rounded to e4m3.
_WEIGHT_UNIT = 256.0
_LN_2 = 0.6931471805599453


def attend_quantized_reference(
    x: QuantizedQKV, mask: BlockMask, dtype: torch.dtype
) -> AttentionOutput:
    """Attend with a token-level mask, one head at a time.

    Weights are rounded relative to the largest of their row, not to the running maximum that a
    kernel knows: errors agree in size, not one by one.

    Args:
        x: quantised inputs.
        mask: kept blocks.
        dtype: dtype of the output.
    """
    B, H, Sq, _ = x.q.shape
    keep = mask.token_mask().expand(B, H, Sq, x.seq_kv)
    values = dequantized_values(x)
    out = torch.empty(B, H, Sq, values.shape[-1], dtype=dtype, device=x.q.device)
    lse = torch.empty(B, H, Sq, dtype=torch.float32, device=x.q.device)
    for b in range(B):
        for h in range(H):
            scores = logits(x, b, h).masked_fill(~keep[b, h], -torch.inf)
            top = scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
            weights = torch.exp2(scores - top)
            total = weights.sum(-1)
            lse[b, h] = (top[:, 0] + torch.log2(total)) * _LN_2 + x.lse_shift[b, h]
            rounded = (weights * _WEIGHT_UNIT).to(torch.float8_e4m3fn).float() / _WEIGHT_UNIT
            # Rows without keys give 0 / 0: defined as 0.
            out[b, h] = (rounded @ values[b, h] / total[:, None]).nan_to_num(0.0).to(dtype)
    return AttentionOutput(out, lse)


def logits(x: QuantizedQKV, b: int, h: int) -> Tensor:
    """Return one head's (Sq, Skv) float32 base-2 logits, without what the mean key adds."""
    k_unit = x.k_scale[b, h].repeat_interleave(x.block_kv)[: x.seq_kv]
    # Sums of products of int8 are exact in float32.
    return (x.q[b, h].float() @ x.k[b, h].float().mT) * x.q_scale[b, h][:, None] * k_unit


def dequantized_values(x: QuantizedQKV) -> Tensor:
    """Return (B, H, Skv, D) float32 values in their natural order."""
    place = torch.argsort(value_order(x.v.shape[-1], x.v.device))[: x.seq_kv]
    return x.v.float()[..., place].mT * x.v_scale[..., None, None]
