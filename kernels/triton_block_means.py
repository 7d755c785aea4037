"""Triton twin of ``block_means``, and what attention kernels add to the logits of means."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.triton_permute import shared_strides

# (token rows that one program holds at once, warps) where blocks are equal, the fastest on an H200
# of `python -m vidsparse.profiling.tune_parts --heads 8`, and where they vary: the largest is the
# last done.
MEANS, RAGGED_MEANS = (32, 1), (128, 8)
# Rows at once where tangents weigh them: blocks of up to so many whole, others in parts.
_MOST_ROWS, _ROWS = 128, 32
# Key blocks handled at once by the program of a query block.
_CHUNK = 1024
# Means of one tile in any attention kernel divide this.
MEANS_PADDING = 128
# Bias of blocks that do not count: finite, so that a tile without any other gives no NaN.
_EXCLUDED = tl.constexpr(-1e30)


class MeanTiles(NamedTuple):
    """What attention kernels read to compensate.

    Args:
        k: (B, H, Nkv, D) mean keys, contiguous up to padding of D.
        v: (B, H, Nkv, D) mean values, with the strides of ``k``.
        bias: (b, h, Nq, P) float32 to add to q.k before scaling, P the next multiple of
            ``MEANS_PADDING`` after Nkv; b and h as in the mask, 1 for shared lists.
        num_means: (b, h, Nq) int32, Nkv for query blocks that skip something, else 0.
    """

    k: Tensor
    v: Tensor
    bias: Tensor
    num_means: Tensor


@triton.jit
def _sum_block(ptr, first, last, stride, D, ROWS: tl.constexpr, PAD_D: tl.constexpr):
    columns = tl.arange(0, PAD_D)
    # Summed over the rows once, at the end: each sum across rows waits for all warps.
    total = tl.zeros([ROWS, PAD_D], tl.float32)
    for start in range(first, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        address = ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        keep = (rows < last)[:, None] & (columns < D)[None, :]
        total += tl.load(address, mask=keep, other=0.0).to(tl.float32)
    return tl.sum(total, 0)


@triton.jit
def _key_value_means_kernel(
    k_ptr, v_ptr, offsets_ptr, k_mean_ptr, v_mean_ptr,
    k_stride_b, k_stride_h, k_stride_s, v_stride_b, v_stride_h, v_stride_s,
    offset_stride_b, offset_stride_h, mean_stride_h, mean_stride_s,
    H, S, D, block_kv, ROWS: tl.constexpr, PAD_D: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """One program averages the keys or the values of one block of one head."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = head // H, head % H
    if RAGGED:
        offsets_ptr += b * offset_stride_b + h * offset_stride_h + block
        first, last = tl.load(offsets_ptr), tl.minimum(tl.load(offsets_ptr + 1), S)
        first = tl.maximum(first, 0)
    else:
        first, last = block * block_kv, tl.minimum((block + 1) * block_kv, S)
    if tl.program_id(2) == 0:
        k_ptr += b * k_stride_b + h * k_stride_h
        total = _sum_block(k_ptr, first, last, k_stride_s, D, ROWS, PAD_D)
        mean_ptr = k_mean_ptr
    else:
        v_ptr += b * v_stride_b + h * v_stride_h
        total = _sum_block(v_ptr, first, last, v_stride_s, D, ROWS, PAD_D)
        mean_ptr = v_mean_ptr
    columns = tl.arange(0, PAD_D)
    mean = total / tl.maximum(last - first, 1).to(tl.float32)
    target = mean_ptr + head * mean_stride_h + block * mean_stride_s + columns
    tl.store(target, mean.to(mean_ptr.dtype.element_ty), mask=columns < D)


@triton.jit
def _tangent_rows(
    k_ptr, v_ptr, tangent, rows, last, k_stride_s, v_stride_s, D, PAD_D: tl.constexpr
):  # fmt: skip
    """Return keys, values and logits at the tangent of some rows; -inf past the last."""
    columns = tl.arange(0, PAD_D)
    keep = (rows < last)[:, None] & (columns < D)[None, :]
    place = rows.to(tl.int64)[:, None]
    k = tl.load(k_ptr + place * k_stride_s + columns[None, :], mask=keep, other=0.0)
    v = tl.load(v_ptr + place * v_stride_s + columns[None, :], mask=keep, other=0.0)
    k, v = k.to(tl.float32), v.to(tl.float32)
    return k, v, tl.where(rows < last, tl.sum(k * tangent[None, :], 1), float("-inf"))


@triton.jit
def _tangent_means_kernel(
    k_ptr, v_ptr, tangent_ptr, offsets_ptr, k_mean_ptr, v_mean_ptr, weight_ptr,
    k_stride_b, k_stride_h, k_stride_s, v_stride_b, v_stride_h, v_stride_s,
    offset_stride_b, offset_stride_h, mean_stride_h, mean_stride_s,
    H, S, D, N, block_kv, scale, ROWS: tl.constexpr, PAD_D: tl.constexpr,
    RAGGED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One program averages keys and values of one block of one head, weighed by its tangent."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = head // H, head % H
    if RAGGED:
        offsets_ptr += b * offset_stride_b + h * offset_stride_h + block
        first, last = tl.load(offsets_ptr), tl.minimum(tl.load(offsets_ptr + 1), S)
        first = tl.maximum(first, 0)
    else:
        first, last = block * block_kv, tl.minimum((block + 1) * block_kv, S)
    k_ptr += b * k_stride_b + h * k_stride_h
    v_ptr += b * v_stride_b + h * v_stride_h
    columns = tl.arange(0, PAD_D)
    inside_d = columns < D
    tangent = tl.load(tangent_ptr + (head * N + block) * D + columns, mask=inside_d, other=0.0)
    tangent *= scale
    if WHOLE:
        rows = first + tl.arange(0, ROWS)
        k, v, row_max = _tangent_rows(
            k_ptr, v_ptr, tangent, rows, last, k_stride_s, v_stride_s, D, PAD_D
        )
        most = tl.max(row_max, 0)
        share = tl.exp(row_max - tl.where(most == float("-inf"), 0.0, most))
        total = tl.sum(share, 0)
        k_sum, v_sum = k, v
    else:
        # Every row slot keeps its own maximum and sums: rows meet once, at the end.
        row_max = tl.full([ROWS], float("-inf"), tl.float32)
        row_sum = tl.zeros([ROWS], tl.float32)
        k_sum = tl.zeros([ROWS, PAD_D], tl.float32)
        v_sum = tl.zeros([ROWS, PAD_D], tl.float32)
        for start in range(first, last, ROWS):
            rows = start + tl.arange(0, ROWS)
            k, v, logits = _tangent_rows(
                k_ptr, v_ptr, tangent, rows, last, k_stride_s, v_stride_s, D, PAD_D
            )
            new_max = tl.maximum(row_max, logits)
            base = tl.where(new_max == float("-inf"), 0.0, new_max)
            weight, decay = tl.exp(logits - base), tl.exp(row_max - base)
            row_sum = row_sum * decay + weight
            k_sum = k_sum * decay[:, None] + weight[:, None] * k
            v_sum = v_sum * decay[:, None] + weight[:, None] * v
            row_max = new_max
        most = tl.max(row_max, 0)
        share = tl.exp(row_max - tl.where(most == float("-inf"), 0.0, most))
        total = tl.sum(row_sum * share, 0)
    inverse = tl.where(total == 0, 0.0, 1.0 / total)
    k_mean = (tl.sum(k_sum * share[:, None], 0) * inverse).to(k_mean_ptr.dtype.element_ty)
    v_mean = tl.sum(v_sum * share[:, None], 0) * inverse
    # Against the mean as rounded: the weight at the tangent stays exact.
    weight = most + tl.log(total) - tl.sum(k_mean.to(tl.float32) * tangent, 0)
    target = head * mean_stride_h + block * mean_stride_s + columns
    tl.store(k_mean_ptr + target, k_mean, mask=inside_d)
    tl.store(v_mean_ptr + target, v_mean.to(v_mean_ptr.dtype.element_ty), mask=inside_d)
    tl.store(weight_ptr + head * N + block, weight)


def tangent_means(
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask,
    tangents: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Average keys and values as tangents weigh them; see ``block_means.key_value_means``."""
    B, H, S, D = k.shape
    N = mask.num_kv_blocks
    k_mean, v_mean = torch.empty(2, B, H, N, -(-D // 8) * 8, dtype=k.dtype, device=k.device)
    weight = torch.empty(B, H, N, dtype=torch.float32, device=k.device)
    if isinstance(mask, RaggedBlockMask):
        offsets, block_kv = mask.kv_offsets.contiguous(), 0
    else:
        offsets, block_kv = mask.kv_num_blocks, mask.block_kv
    whole = 0 < block_kv <= _MOST_ROWS
    rows = triton.next_power_of_2(block_kv) if whole else _ROWS
    _tangent_means_kernel[(N, B * H)](
        k, v, tangents.contiguous(), offsets, k_mean, v_mean, weight,
        *k.stride()[:3], *v.stride()[:3], *shared_strides(offsets), *k_mean.stride()[1:3],
        H, S, D, N, block_kv, scale, ROWS=rows, PAD_D=triton.next_power_of_2(D),
        RAGGED=block_kv == 0, WHOLE=whole, num_warps=max(1, rows // 32) if whole else 4,
    )  # fmt: skip
    return k_mean[..., :D], v_mean[..., :D], weight


def key_value_means_triton(
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask,
    config: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Average keys and values of each block; see ``block_means.key_value_means``.

    Args:
        k: (B, H, Skv, D).
        v: (B, H, Skv, D).
        mask: its key blocks are averaged.
        config: rows at once and warps, by default the fastest.
    """
    B, H, S, D = k.shape
    N = mask.num_kv_blocks
    # Rows start at multiples of 16 bytes, which the copy engine asks for.
    k_mean, v_mean = torch.empty(2, B, H, N, -(-D // 8) * 8, dtype=k.dtype, device=k.device)
    if isinstance(mask, RaggedBlockMask):
        offsets, block_kv = mask.kv_offsets.contiguous(), 0
    else:
        # Blocks of one size need no offsets.
        offsets, block_kv = mask.kv_num_blocks, mask.block_kv
    rows, warps = config or (MEANS if block_kv else RAGGED_MEANS)
    _key_value_means_kernel[(N, B * H, 2)](
        k, v, offsets, k_mean, v_mean, *k.stride()[:3], *v.stride()[:3],
        *shared_strides(offsets), *k_mean.stride()[1:3], H, S, D,
        block_kv, ROWS=rows, PAD_D=triton.next_power_of_2(D),
        RAGGED=block_kv == 0, num_warps=warps,
    )  # fmt: skip
    return k_mean[..., :D], v_mean[..., :D]


@triton.jit
def _list_bias_kernel(
    count_ptr, index_ptr, bias_ptr, means_ptr, weight_ptr, Nq, N, S, padded, block_kv,
    inverse_scale, CHUNK: tl.constexpr, WEIGHED: tl.constexpr,
):  # fmt: skip
    """One program fills the bias of one list of kept blocks."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.minimum(tl.load(count_ptr + row), N)
    bias_ptr += row * padded
    for start in range(0, padded, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        size = tl.minimum(S - blocks * block_kv, block_kv)
        if WEIGHED:
            bias = tl.load(weight_ptr + row // Nq * N + blocks, mask=size > 0, other=0.0)
        else:
            bias = tl.log(tl.maximum(size, 1).to(tl.float32))
        bias *= inverse_scale
        bias = tl.where(size > 0, bias, _EXCLUDED)
        tl.store(bias_ptr + blocks, bias, mask=blocks < padded)
    # Kept blocks are overwritten, by other threads.
    tl.debug_barrier()
    for start in range(0, count, CHUNK):
        slots = start + tl.arange(0, CHUNK)
        block = tl.load(index_ptr + row * N + slots, mask=slots < count, other=-1)
        excluded = tl.full([CHUNK], _EXCLUDED, tl.float32)
        tl.store(bias_ptr + block, excluded, mask=(block >= 0) & (block < N))
    tl.store(means_ptr + row, tl.where(count < N, N, 0))


@triton.jit
def _ragged_bias_kernel(
    mask_ptr, offsets_ptr, bias_ptr, means_ptr, mask_stride_b, mask_stride_h,
    offset_stride_b, offset_stride_h, weight_ptr, H, Nq, N, padded, inverse_scale,
    CHUNK: tl.constexpr, WEIGHED: tl.constexpr,
):  # fmt: skip
    """One program fills the bias of one query block of one head."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = head // H, head % H
    mask_ptr += b * mask_stride_b + h * mask_stride_h + block.to(tl.int64) * N
    offsets_ptr += b * offset_stride_b + h * offset_stride_h
    row = head * Nq + block
    skipped = 0
    for start in range(0, padded, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        inside = blocks < N
        first = tl.load(offsets_ptr + blocks, mask=inside, other=0)
        size = tl.load(offsets_ptr + blocks + 1, mask=inside, other=0) - first
        kept = tl.load(mask_ptr + blocks, mask=inside, other=1) != 0
        counts = (size > 0) & (kept == 0)
        if WEIGHED:
            bias = tl.load(weight_ptr + head * N + blocks, mask=counts, other=0.0)
        else:
            bias = tl.log(tl.maximum(size, 1).to(tl.float32))
        bias *= inverse_scale
        tl.store(
            bias_ptr + row * padded + blocks, tl.where(counts, bias, _EXCLUDED),
            mask=blocks < padded,
        )  # fmt: skip
        skipped += tl.sum(counts.to(tl.int32), 0)
    tl.store(means_ptr + row, tl.where(skipped > 0, N, 0))


def mean_tiles(
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask,
    scale: float,
    tangents: Tensor | None = None,
) -> MeanTiles:
    """Prepare compensation for an attention kernel, without a synchronisation.

    Args:
        k: (B, H, Skv, D).
        v: (B, H, Skv, D).
        mask: kept blocks; ragged ones must lead with (B, H) or 1 throughout.
        scale: factor on the logits.
        tangents: (B, H, Nkv, D) float32 or None; the mask then leads with (B, H).
    """
    if tangents is None:
        (k_mean, v_mean), weight = key_value_means_triton(k, v, mask), None
    else:
        k_mean, v_mean, weight = tangent_means(k, v, mask, tangents, scale)
    N = mask.num_kv_blocks
    padded = -(-N // MEANS_PADDING) * MEANS_PADDING
    kept = mask.mask if isinstance(mask, RaggedBlockMask) else mask.kv_indices
    lead = kept.shape[:2]
    if isinstance(mask, RaggedBlockMask):
        lead = torch.broadcast_shapes(lead, mask.kv_offsets.shape[:2])
    bias = torch.empty(*lead, mask.num_q_blocks, padded, dtype=torch.float32, device=k.device)
    num_means = torch.empty(*lead, mask.num_q_blocks, dtype=torch.int32, device=k.device)
    chunk = min(_CHUNK, triton.next_power_of_2(padded))
    if isinstance(mask, RaggedBlockMask):
        kept, offsets = mask.mask.contiguous(), mask.kv_offsets.contiguous()
        _ragged_bias_kernel[(mask.num_q_blocks, lead[0] * lead[1])](
            kept.view(torch.uint8), offsets, bias, num_means,
            *shared_strides(kept), *shared_strides(offsets), bias if weight is None else weight,
            lead[1], mask.num_q_blocks, N, padded, 1 / scale, CHUNK=chunk,
            WEIGHED=weight is not None, num_warps=4,
        )  # fmt: skip
    else:
        _list_bias_kernel[(num_means.numel(),)](
            mask.kv_num_blocks, mask.kv_indices, bias, num_means,
            bias if weight is None else weight, mask.num_q_blocks, N, mask.seq_kv, padded,
            mask.block_kv, 1 / scale, CHUNK=chunk, WEIGHED=weight is not None, num_warps=4,
        )  # fmt: skip
    return MeanTiles(k_mean, v_mean, bias, num_means)
