"""Attention of a few query rows, dense and under two key masks at once."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native

# Weights of a few heads at a time: bounds the torch path's workspace at long sequences.
_WORKSPACE_BYTES = 1 << 30
_TINY = torch.finfo(torch.float32).tiny


def attend_sampled_rows(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Attend densely and under each of two masks, with one pass over the keys on a GPU.

    All three share one softmax numerator: equal masks give results equal to float32 rounding (a
    GPU may sum the same weights in another order).

    Args:
        q: (B, H, R, D) sampled queries.
        k: (B, H, S, D) keys, last dimension contiguous.
        v: (B, H, S, D) values.
        keep: (2, R, S) bool, the keys that each row keeps; at least one per row.

    Returns:
        (3, B, H, R, D) float32: dense, first mask, second mask.
    """
    if triton_is_native(q.device) and q.dtype in (torch.bfloat16, torch.float16):
        from vidsparse.kernels.triton_sampled_rows import attend_sampled_rows_triton

        return attend_sampled_rows_triton(q, k, v, keep)
    # float16 would lose the small weights of long sequences; bfloat16 has float32's range.
    dtype = torch.bfloat16 if q.dtype is torch.float16 else q.dtype
    wide = torch.cat([torch.ones_like(keep[:1]), keep]).to(dtype)
    heads = max(1, _WORKSPACE_BYTES // (wide.nbytes * q.shape[0]))
    split = zip(*(x.split(heads, 1) for x in (q, k, v)), strict=True)
    return torch.cat([_attend_heads(qs, ks, vs, wide) for qs, ks, vs in split], 2)


def _attend_heads(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.mT, -1).to(keep.dtype)
    # The masks stand side by side in one matmul, so v is read once.
    weights = (weights.unsqueeze(2) * keep).flatten(2, 3)
    total = weights.sum(-1, keepdim=True, dtype=torch.float32)
    out = (weights @ v.to(keep.dtype)).float() / total.clamp(min=_TINY)
    return torch.stack(out.unflatten(2, (3, -1)).unbind(2))
