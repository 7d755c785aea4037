"""Queries, keys and values in 8 bits, for attention on 8-bit tensor cores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.launch import padded_head_size

LOG2_E = 1.4426950408889634
# Largest numbers of int8 (used symmetrically) and of e4m3.
INT8_MAX = 127.0
E4M3_MAX = 448.0
# Keys are padded to whole tiles of the attention kernels.
PADDED_KEYS = 128
# An all-zero row gets a scale of this over 127 instead of 0.
SMALLEST = 1e-8


@dataclass(frozen=True)
class QuantizedQKV:
    """Inputs of 8-bit attention.

    Keys are taken relative to their mean over the sequence, which softmax cannot tell, then
    queries and keys are rotated by a Hadamard matrix, which products cannot tell: both spread
    outlying channels. P is the head size padded to a power of two, at least 64.

    Args:
        q: (B, H, Sq, P) int8.
        q_scale: (B, H, Sq) float32: base-2 logits per unit of q . k * k_scale.
        lse_shift: (B, H, Sq) float32: what the mean key adds to the natural LSE.
        k: (B, H, Skv, P) int8.
        k_scale: (B, H, Nkv) float32, one per block of keys.
        v: (B, H, D, Skv padded to 128) float8_e4m3fn, keys in ``value_order``, 0 in the padding.
        v_scale: (B, H) float32: values per unit of v.
        block_kv: keys per block.
        seq_kv: number of keys.
    """

    q: Tensor
    q_scale: Tensor
    lse_shift: Tensor
    k: Tensor
    k_scale: Tensor
    v: Tensor
    v_scale: Tensor
    block_kv: int
    seq_kv: int


def quantize_qkv(
    q: Tensor, k: Tensor, v: Tensor, *, block_kv: int, scale: float | None = None
) -> QuantizedQKV:
    """Round to 8 bits: q per row, k per block, both int8; v per head, e4m3.

    Args:
        q: (B, H, Sq, D) floating and finite, D at most 128.
        k: (B, H, Skv, D).
        v: (B, H, Skv, D).
        block_kv: keys per block of the masks that will be used.
        scale: factor on the logits, 1 / sqrt(D) by default.

    Source: SageAttention, arXiv:2410.02367 (smoothing, scales); FlashAttention-3,
    arXiv:2407.08608, section 3.3 (rotation).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if triton_is_native(q.device):
        from vidsparse.kernels.triton_quantize import quantize_qkv_triton

        return quantize_qkv_triton(q, k, v, block_kv, scale)
    return quantize_qkv_torch(q, k, v, block_kv, scale)


def quantize_qkv_torch(
    q: Tensor, k: Tensor, v: Tensor, block_kv: int, scale: float
) -> QuantizedQKV:
    """Return what ``quantize_qkv`` does, in plain torch."""
    mean = k.float().mean(2, keepdim=True)
    lse_shift = (q.float() @ mean.mT)[..., 0] * scale
    rotated_q, rotated_k = rotate(q.float()), rotate(k.float() - mean)
    q_unit = rotated_q.abs().amax(-1).clamp(min=SMALLEST) / INT8_MAX
    k_unit = _block_amax(rotated_k, block_kv).clamp(min=SMALLEST) / INT8_MAX
    per_key = k_unit.repeat_interleave(block_kv, -1)[..., : k.shape[2]]
    v_scale = v.float().abs().amax((2, 3)).clamp(min=SMALLEST) / E4M3_MAX
    # The rotation is its own inverse up to this factor.
    factor = scale * LOG2_E / rotated_q.shape[-1]
    return QuantizedQKV(
        _to_int8(rotated_q / q_unit[..., None]),
        q_unit * factor,
        lse_shift,
        _to_int8(rotated_k / per_key[..., None]),
        k_unit,
        _transposed_e4m3(v.float() / v_scale[..., None, None]),
        v_scale,
        block_kv,
        k.shape[2],
    )


def rotate(x: Tensor) -> Tensor:
    """Multiply (..., D), padded to P, by the P x P Hadamard matrix of signs."""
    P = max(64, padded_head_size(x.shape[-1]))
    return torch.nn.functional.pad(x, (0, P - x.shape[-1])) @ hadamard(P, x.device, x.dtype)


@cache
def hadamard(P: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the (P, P) Hadamard matrix with entries 1 and -1; P is a power of two.

    The same tensor every time: building it takes longer than rounding the queries.
    """
    matrix = torch.ones(1, 1, dtype=torch.float32, device=device)
    while len(matrix) < P:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    return matrix.to(dtype)


def value_order(keys: int, device: torch.device) -> Tensor:
    """Return which key lies at each place of the transposed values: (keys,) int64.

    Within each 16 keys, key 8 b + 2 c + e lies at 4 c + 2 b + e (b, e < 2, c < 4). A thread of a
    Hopper matrix product holds logits 2 c, 2 c + 1, 2 c + 8, 2 c + 9 of 16 and must hand over four
    consecutive 8-bit weights.
    """
    place = torch.arange(keys, device=device)
    c, b, e = place % 16 // 4, place % 4 // 2, place % 2
    return place // 16 * 16 + 8 * b + 2 * c + e


def _block_amax(x: Tensor, block: int) -> Tensor:
    x = torch.nn.functional.pad(x.abs().amax(-1), (0, -x.shape[2] % block))
    return x.view(*x.shape[:2], -1, block).amax(-1)


def _to_int8(x: Tensor) -> Tensor:
    return torch.floor(x + 0.5).clamp(-INT8_MAX, INT8_MAX).to(torch.int8)


def _transposed_e4m3(x: Tensor) -> Tensor:
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % PADDED_KEYS))
    x = x[:, :, value_order(x.shape[2], x.device)]
    return x.clamp(-E4M3_MAX, E4M3_MAX).mT.contiguous().to(torch.float8_e4m3fn)
