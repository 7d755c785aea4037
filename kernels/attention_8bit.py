"""Block-sparse and dense attention on 8-bit tensor cores: int8 logits, e4m3 weights and values."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.backends import choose_impl, triton_is_interpreted, why_no_triton
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_sparse_attention import Impl, _input_reasons
from vidsparse.kernels.hopper import hopper_reasons
from vidsparse.kernels.quantize import QuantizedQKV, quantize_qkv
from vidsparse.kernels.reference_8bit import attend_quantized_reference

_GROUP_ROWS = 64
_BLOCK_KV = (32, 64, 128)


def block_sparse_attention_8bit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    impl: Impl = Impl.AUTO,
) -> AttentionOutput:
    """Attend each query block to its kept key blocks, with inputs rounded to 8 bits.

    About 4 % off exact attention: the error of e4m3 weights and values; logits are off by less.

    Args:
        q: (B, H, Sq, D) bfloat16 or float16 (float32 for REFERENCE), D at most 128. All
            tokens must be finite: the mean of all keys enters each of them.
        k: (B, H, Skv, D), same dtype and device.
        v: (B, H, Skv, D), same dtype and device.
        mask: kept blocks of 32, 64 or 128 keys.
        scale: positive factor on the logits, 1 / sqrt(D) by default.
        impl: GLUON (Hopper), TRITON (Ada, Hopper, interpreter) or REFERENCE, which simulates the
            rounding and is not fast; AUTO takes the first that runs here.

    Returns:
        Output in q's dtype and the natural LSE; rows without keys give 0 and -inf.

    Raises:
        ValueError: the inputs do not fit together, or ``impl`` cannot take them.

    Source: SageAttention2, arXiv:2411.10958; FlashAttention-3, arXiv:2407.08608.
    """
    reasons = _input_reasons(q, k, v, mask)
    if reasons:
        raise ValueError("block_sparse_attention_8bit: " + "; ".join(reasons))
    if scale is not None and not scale > 0:
        raise ValueError(f"scale={scale} must be positive")
    impl = choose_impl(
        impl,
        [Impl.REFERENCE] if q.device.type == "cpu" else [Impl.GLUON, Impl.TRITON],
        lambda candidate: reasons_8bit(candidate, q, mask),
        task="8-bit attention",
        where=str(q.device),
    )
    x = quantize_qkv(q, k, v, block_kv=mask.block_kv, scale=scale)
    return attend_quantized(x, mask, q, impl=impl)


def dense_attention_8bit(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, impl: Impl = Impl.AUTO
) -> AttentionOutput:
    """Attend to all keys, with inputs rounded to 8 bits; see ``block_sparse_attention_8bit``."""
    mask = BlockMask.full(
        block_q=128, block_kv=128, seq_q=q.shape[2], seq_kv=k.shape[2], device=q.device
    )
    return block_sparse_attention_8bit(q, k, v, mask, scale=scale, impl=impl)


def attend_quantized(
    x: QuantizedQKV, mask: BlockMask, like: Tensor, *, impl: Impl
) -> AttentionOutput:
    """Attend with inputs that are quantised already.

    Args:
        x: quantised inputs.
        mask: kept blocks of ``x.block_kv`` keys.
        like: (B, H, Sq, D) tensor whose dtype and strides the output gets.
        impl: an implementation without reasons in ``reasons_8bit``.
    """
    if impl is Impl.REFERENCE:
        return attend_quantized_reference(x, mask, like.dtype)
    # The layout of q carries over, so that a caller's transposed view stays one.
    out = torch.empty_like(like)
    if impl is Impl.TRITON:
        from vidsparse.kernels.triton_attention_8bit import attend_quantized_triton

        return attend_quantized_triton(x, mask, out)
    from vidsparse.kernels.hopper_8bit import attend_quantized_gluon

    return attend_quantized_gluon(x, mask, out)


def reasons_8bit(impl: Impl, q: Tensor, mask: BlockMask | RaggedBlockMask) -> list[str]:
    """List why an implementation cannot attend in 8 bits; empty when it can."""
    if isinstance(mask, RaggedBlockMask):
        return ["blocks of varying size; use block_sparse_attention"]
    if impl is Impl.REFERENCE:
        return []
    if impl not in (Impl.GLUON, Impl.TRITON):
        return [f"{impl.value} has no 8-bit attention; use gluon, triton or reference"]
    reasons = hopper_reasons(q=q) if impl is Impl.GLUON else _triton_reasons(q)
    if impl is Impl.GLUON and mask.block_q % _GROUP_ROWS:
        reasons.append(f"blocks of {mask.block_q} queries; use a multiple of {_GROUP_ROWS}")
    if mask.block_kv not in _BLOCK_KV:
        reasons.append(f"blocks of {mask.block_kv} keys; use one of {_BLOCK_KV}")
    return reasons


def _triton_reasons(q: Tensor) -> list[str]:
    why = why_no_triton(q.device)
    reasons = [why] if why else []
    if q.device.type == "cuda" and (
        torch.version.hip is not None or torch.cuda.get_device_capability(q.device) < (8, 9)
    ):
        reasons.append(f"{q.device} has no e4m3 products; use block_sparse_attention")
    dtypes = (torch.bfloat16, torch.float16)
    if q.dtype not in dtypes and not (triton_is_interpreted() and q.dtype is torch.float32):
        reasons.append(f"dtype {q.dtype}; use bfloat16 or float16")
    if q.shape[-1] > 128 or q.shape[-1] % 8:
        reasons.append(f"head size {q.shape[-1]}; use a multiple of 8 up to 128")
    return reasons
