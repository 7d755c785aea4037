"""Triton twin of ``quantize_qkv``: a pass for the mean key and largest value, a pass to round."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.backends import triton_is_interpreted
from vidsparse.kernels.launch import padded_head_size
from vidsparse.kernels.quantize import (
    E4M3_MAX,
    LOG2_E,
    PADDED_KEYS,
    SMALLEST,
    QuantizedQKV,
    hadamard,
)
from vidsparse.kernels.triton_attention import load_rows

# Tokens that one program sums up, and tokens of one step.
_SUM_TOKENS, _SUM_STEP = 512, 64
# Rows of one step that rounds queries, and steps of one program.
_ROWS, _STEPS = 64, 4


@triton.jit
def _sum_kernel(
    k_ptr, v_ptr, sums_ptr, largest_ptr, k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s, H, S, D,
    TOKENS: tl.constexpr, STEP: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """One program sums TOKENS keys of one head and finds the largest of their values."""
    part, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k_ptr += (head // H) * k_stride_b + (head % H) * k_stride_h
    v_ptr += (head // H) * v_stride_b + (head % H) * v_stride_h
    total = tl.zeros([PAD_D], tl.float32)
    largest = tl.zeros([PAD_D], tl.float32)
    for step in tl.range(0, TOKENS, STEP):
        rows = part * TOKENS + step + tl.arange(0, STEP)
        k = load_rows(k_ptr, rows, k_stride_s, rows < S, D, PAD_D, EVEN_D)
        v = load_rows(v_ptr, rows, v_stride_s, rows < S, D, PAD_D, EVEN_D)
        total += tl.sum(k.to(tl.float32), 0)
        largest = tl.maximum(largest, tl.max(tl.abs(v.to(tl.float32)), 0))
    place = head * tl.num_programs(0) + part
    tl.store(sums_ptr + place * PAD_D + tl.arange(0, PAD_D), total)
    tl.store(largest_ptr + place, tl.max(largest, 0))


@triton.jit
def to_e4m3(x, INTERPRETED: tl.constexpr):
    """Round numbers of at most 448."""
    if INTERPRETED:
        # Triton's interpreter loses the carry of a mantissa that rounds up to 2: leave it none.
        wide = x * 1048577.0
        x = wide - (wide - x)
    return x.to(tl.float8e4nv)


@triton.jit
def _round_int8(x, inverse_unit):
    x = tl.floor(x * inverse_unit + 0.5)
    return tl.minimum(tl.maximum(x, -127.0), 127.0).to(tl.int8)


@triton.jit
def _round_queries_kernel(
    q_ptr, mean_ptr, signs_ptr, out_ptr, unit_ptr, shift_ptr,
    q_stride_b, q_stride_h, q_stride_s, H, S, D, scale, factor,
    ROWS: tl.constexpr, STEPS: tl.constexpr, SMALLEST: tl.constexpr,
    PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """One program rounds ROWS x STEPS queries of one head, each row on its own."""
    head = tl.program_id(1).to(tl.int64)
    q_ptr += (head // H) * q_stride_b + (head % H) * q_stride_h
    columns = tl.arange(0, PAD_D)
    signs = tl.load(signs_ptr + columns[:, None] * PAD_D + columns[None, :])
    mean = tl.load(mean_ptr + head * PAD_D + columns)
    for step in tl.range(0, STEPS):
        rows = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        q = load_rows(q_ptr, rows, q_stride_s, rows < S, D, PAD_D, EVEN_D)
        shift = tl.sum(q.to(tl.float32) * mean[None, :], 1) * scale
        rotated = tl.dot(q, signs, input_precision="ieee")
        unit = tl.maximum(tl.max(tl.abs(rotated), 1), SMALLEST) / 127.0
        place = head * S + rows
        inside = rows < S
        tl.store(
            out_ptr + place[:, None] * PAD_D + columns[None, :],
            _round_int8(rotated, (1.0 / unit)[:, None]), mask=inside[:, None],
        )  # fmt: skip
        tl.store(unit_ptr + place, unit * factor, mask=inside)
        tl.store(shift_ptr + place, shift, mask=inside)


@triton.jit
def _round_keys_kernel(
    k_ptr, mean_ptr, signs_ptr, out_ptr, unit_ptr, k_stride_b, k_stride_h, k_stride_s,
    H, S, D, num_blocks, block, ROWS: tl.constexpr, STEPS: tl.constexpr, SMALLEST: tl.constexpr,
    PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """One program rounds STEPS blocks of keys of one head, each block on its own."""
    head = tl.program_id(1).to(tl.int64)
    k_ptr += (head // H) * k_stride_b + (head % H) * k_stride_h
    columns = tl.arange(0, PAD_D)
    signs = tl.load(signs_ptr + columns[:, None] * PAD_D + columns[None, :])
    mean = tl.load(mean_ptr + head * PAD_D + columns)
    for step in tl.range(0, STEPS):
        number = tl.program_id(0) * STEPS + step
        offsets = tl.arange(0, ROWS)
        rows = number * block + offsets
        inside = (offsets < block) & (rows < S)
        k = load_rows(k_ptr, rows, k_stride_s, inside, D, PAD_D, EVEN_D)
        centred = tl.where(inside[:, None], k.to(tl.float32) - mean[None, :], 0.0)
        rotated = tl.dot(centred.to(k.dtype), signs, input_precision="ieee")
        unit = tl.maximum(tl.max(tl.abs(rotated)), SMALLEST) / 127.0
        place = (head * S + rows)[:, None] * PAD_D + columns[None, :]
        tl.store(out_ptr + place, _round_int8(rotated, 1.0 / unit), mask=inside[:, None])
        tl.store(unit_ptr + head * num_blocks + number, unit, mask=number < num_blocks)


@triton.jit
def _round_values_kernel(
    v_ptr, unit_ptr, out_ptr, v_stride_b, v_stride_h, v_stride_s, H, S, D, padded,
    KEYS: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program rounds and transposes KEYS values of one head; see ``value_order``."""
    head = tl.program_id(1).to(tl.int64)
    v_ptr += (head // H) * v_stride_b + (head % H) * v_stride_h
    offsets = tl.arange(0, KEYS)
    place = tl.program_id(0) * KEYS + offsets
    key = place // 16 * 16 + place % 4 // 2 * 8 + place % 16 // 4 * 2 + place % 2
    v = load_rows(v_ptr, key, v_stride_s, key < S, D, PAD_D, EVEN_D).to(tl.float32)
    v = v * (1.0 / tl.load(unit_ptr + head))
    v = to_e4m3(tl.minimum(tl.maximum(v, -448.0), 448.0), INTERPRETED)
    rows = tl.arange(0, PAD_D)
    target = out_ptr + (head * D + rows)[:, None] * padded + place[None, :]
    tl.store(target, v.T, mask=(rows < D)[:, None] & (place < padded)[None, :])


def quantize_qkv_triton(
    q: Tensor, k: Tensor, v: Tensor, block_kv: int, scale: float
) -> QuantizedQKV:
    """Return what ``quantize_qkv`` does."""
    B, H, Sq, D = q.shape
    S, P = k.shape[2], max(64, padded_head_size(D))
    shape = {"PAD_D": P, "EVEN_D": P == D}
    mean, v_scale = _mean_key_and_value_scale(k, v, P)
    signs = hadamard(P, q.device, q.dtype)
    blocks, padded = triton.cdiv(S, block_kv), triton.cdiv(S, PADDED_KEYS) * PADDED_KEYS
    q8, k8 = (torch.empty(B, H, n, P, dtype=torch.int8, device=q.device) for n in (Sq, S))
    v8 = torch.empty(B, H, D, padded, dtype=torch.float8_e4m3fn, device=q.device)
    q_scale, lse_shift = (
        torch.empty(B, H, Sq, dtype=torch.float32, device=q.device) for _ in range(2)
    )
    k_scale = torch.empty(B, H, blocks, dtype=torch.float32, device=q.device)
    _round_queries_kernel[(triton.cdiv(Sq, _ROWS * _STEPS), B * H)](
        q, mean, signs, q8, q_scale, lse_shift, *q.stride()[:3], H, Sq, D, scale,
        # The rotation is its own inverse up to a factor P.
        scale * LOG2_E / P, ROWS=_ROWS, STEPS=_STEPS, SMALLEST=SMALLEST, **shape,
    )  # fmt: skip
    _round_keys_kernel[(triton.cdiv(blocks, _STEPS), B * H)](
        k, mean, signs, k8, k_scale, *k.stride()[:3], H, S, D, blocks, block_kv,
        ROWS=max(16, triton.next_power_of_2(block_kv)), STEPS=_STEPS, SMALLEST=SMALLEST, **shape,
        num_warps=8 if block_kv > 64 else 4,
    )  # fmt: skip
    _round_values_kernel[(padded // PADDED_KEYS, B * H)](
        v, v_scale, v8, *v.stride()[:3], H, S, D, padded, KEYS=PADDED_KEYS,
        INTERPRETED=triton_is_interpreted(), **shape,
    )  # fmt: skip
    return QuantizedQKV(q8, q_scale, lse_shift, k8, k_scale, v8, v_scale, block_kv, S)


def _mean_key_and_value_scale(k: Tensor, v: Tensor, P: int) -> tuple[Tensor, Tensor]:
    """Return the mean key (B, H, P) and what one unit of e4m3 stands for (B, H)."""
    B, H, S, D = k.shape
    parts = triton.cdiv(S, _SUM_TOKENS)
    sums = torch.empty(B, H, parts, P, dtype=torch.float32, device=k.device)
    largest = torch.empty(B, H, parts, dtype=torch.float32, device=k.device)
    _sum_kernel[(parts, B * H)](
        k, v, sums, largest, *k.stride()[:3], *v.stride()[:3], H, S, D,
        TOKENS=_SUM_TOKENS, STEP=_SUM_STEP, PAD_D=P, EVEN_D=P == D,
    )  # fmt: skip
    return sums.sum(2) / S, largest.amax(2).clamp(min=SMALLEST) / E4M3_MAX
