"""Plain Triton block-sparse attention: any GPU that Triton knows, and its CPU interpreter.

Keys of a row are numbered along its list of chunks, so one loop serves every key block size: key
number p lies in list entry p // CHUNK at offset p % CHUNK. Blocks that a tile divides are read
with one scalar index per tile instead.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.descriptors import heads_descriptor
from vidsparse.kernels.launch import (
    FLOAT32_CONFIG,
    LaunchConfig,
    padded_head_size,
    triton_config,
)
from vidsparse.kernels.moved_heads import MovedHeads
from vidsparse.kernels.running_statistics import RunningStat
from vidsparse.kernels.triton_block_means import MeanTiles, mean_tiles
from vidsparse.kernels.triton_permute import shared_strides
from vidsparse.kernels.triton_tile_statistics import dense_stats, stats_kind

LOG2_E = math.log2(math.e)


@triton.jit
def statistic_reference(lse_ptr, rows, inside, STATS: tl.constexpr):
    """Return what each row's statistics are taken against, or weighed with: nothing outside."""
    if STATS == 2:
        return tl.where(inside, 0.0, float("-inf"))
    if STATS == 3:
        return tl.where(inside, 1.0, 0.0)
    lse = tl.load(lse_ptr + rows, mask=inside, other=float("inf"))
    # Rows without keys weigh nothing either.
    return tl.where(lse == float("-inf"), float("inf"), lse) * 1.4426950408889634


@triton.jit
def tile_statistic(tile_max, tile_sum, row_max, row_sum, reference, STATS: tl.constexpr):
    """Reduce one tile to a number: 1 mass against a given LSE, 2 and 3 ``RunningStat``.

    ``tile_sum`` is in units of 2^row_max; maxima are base-2 logits.
    """
    base = tl.where(row_max == float("-inf"), 0.0, row_max)
    if STATS == 2:
        return tl.max(tile_max - base + reference, 0)
    if STATS == 3:
        return tl.sum(tile_sum / tl.where(row_sum > 0, row_sum, 1.0) * reference, 0)
    return tl.sum(tile_sum * tl.math.exp2(base - reference), 0)


@triton.jit
def online_softmax_update(scores, row_max, row_sum, scale):
    """Fold one tile into the running maximum and sum, which are of base-2 logits scores * scale."""
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
    # A row without any key so far has maximum -inf: subtract 0 instead of making NaN.
    base = tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.math.exp2(scores * scale - base[:, None])
    decay = tl.math.exp2(row_max - base)
    return weights, decay, new_max, row_sum * decay + tl.sum(weights, 1)


@triton.jit
def load_rows(ptr, rows, stride, inside, D, PAD_D: tl.constexpr, EVEN_D: tl.constexpr):
    """Load (rows, PAD_D) of one head, 0 outside."""
    columns = tl.arange(0, PAD_D)
    address = ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    keep = inside[:, None] if EVEN_D else inside[:, None] & (columns < D)[None, :]
    return tl.load(address, mask=keep, other=0.0)


@triton.jit
def _halves(x):
    """Split the columns of a matrix into two matrices."""
    return x.reshape(x.shape[0], 2, x.shape[1] // 2).permute(0, 2, 1).split()


@triton.jit
def _dot_halves(q, k):
    q_low, q_high = _halves(q)
    k_low, k_high = _halves(k)
    # Subtracted with a changed sign: Triton would make an addition continue the first sum.
    return tl.dot(q_low, k_low.T, input_precision="ieee") - tl.dot(
        -q_high, k_high.T, input_precision="ieee"
    )


@triton.jit
def dot_rows(q, k):
    """Multiply the rows of q and k; float32 in up to four partial sums, as one long sum loses bits.

    A float32 product runs on FMA units, one term after the other: with keys far from 0 its error
    after 64 terms was four times that of cuBLAS.
    """
    # Not an early return: what follows one is compiled all the same, and fails for small heads.
    if q.dtype != tl.float32 or q.shape[1] < 64:
        scores = tl.dot(q, k.T, input_precision="ieee")
    else:
        q_low, q_high = _halves(q)
        k_low, k_high = _halves(k)
        scores = _dot_halves(q_low, k_low) - _dot_halves(-q_high, k_high)
    return scores


@triton.jit
def attend_means(
    q, acc, row_max, row_sum, count, k_ptr, v_ptr, bias_ptr, head, N, D, stride_h, stride_s,
    scale_log2, BLOCK_KV: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
    STAGES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Go on with the first ``count`` of N means of a head; the bias excludes kept blocks."""
    if not TMA:
        k_ptr += head * stride_h
        v_ptr += head * stride_h
    offsets = tl.arange(0, BLOCK_KV)
    for start in tl.range(0, count, BLOCK_KV, num_stages=STAGES):
        blocks = start + offsets
        # Asked for before the product that it is added to: its latency hides behind that.
        bias = tl.load(bias_ptr + blocks)
        if TMA:
            k = k_ptr.load([head.to(tl.int32), start, 0]).reshape(BLOCK_KV, PAD_D)
            scores = tl.dot(q, k.T)
        else:
            k = load_rows(k_ptr, blocks, stride_s, blocks < N, D, PAD_D, EVEN_D)
            scores = dot_rows(q, k)
        scores += bias[None, :]
        weights, decay, row_max, row_sum = online_softmax_update(
            scores, row_max, row_sum, scale_log2
        )
        if TMA:
            v = v_ptr.load([head.to(tl.int32), start, 0]).reshape(BLOCK_KV, PAD_D)
        else:
            v = load_rows(v_ptr, blocks, stride_s, blocks < N, D, PAD_D, EVEN_D)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return acc, row_max, row_sum


@triton.jit
def tokens_at(order_ptr, positions, inside, S):
    """Return the tokens at some positions, and which of both lie inside."""
    tokens = tl.load(order_ptr + positions, mask=inside, other=-1)
    # Orders out of range would leave the tensor.
    return tokens, (tokens >= 0) & (tokens < S)


@triton.jit
def _attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, count_ptr, index_ptr,
    q_stride_b, q_stride_h, q_stride_s,
    k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s,
    out_stride_b, out_stride_h, out_stride_s,
    list_stride_b, list_stride_h,
    H, Sq, Skv, D, num_kv_blocks, block_q, scale_log2, stats_lse_ptr, stats_ptr,
    k_mean_ptr, v_mean_ptr, bias_ptr, num_means_ptr, mean_stride_h, mean_stride_s, padded_means,
    moved_ptr, q_order_ptr, k_moved_ptr, v_moved_ptr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, CHUNK: tl.constexpr,
    PAD_D: tl.constexpr, EVEN_D: tl.constexpr, STAGES: tl.constexpr, SCALAR: tl.constexpr,
    STATS: tl.constexpr, TMA: tl.constexpr, MEANS: tl.constexpr, MOVED: tl.constexpr,
):  # fmt: skip
    """One program computes BLOCK_Q queries of one head."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    b, h = head // H, head % H
    tiles_per_block = tl.cdiv(block_q, BLOCK_Q)
    block = tile // tiles_per_block
    first = block * block_q + (tile % tiles_per_block) * BLOCK_Q
    rows = first + tl.arange(0, BLOCK_Q)
    row_inside = rows < tl.minimum((block + 1) * block_q, Sq)
    if MOVED:
        rows, row_inside = tokens_at(q_order_ptr + head * Sq, rows, row_inside, Sq)
    lists = b * list_stride_b + h * list_stride_h + block
    count = tl.minimum(tl.load(count_ptr + lists), num_kv_blocks)
    index_ptr += lists * num_kv_blocks
    if not TMA:
        k_ptr += b * k_stride_b + h * k_stride_h
        v_ptr += b * v_stride_b + h * v_stride_h
    if MOVED:  # noqa: SIM102
        if tl.load(moved_ptr + head) != 0:
            k_ptr, k_stride_s = k_moved_ptr + head * Skv * D, D
            v_ptr, v_stride_s = v_moved_ptr + head * Skv * D, D
    q_ptr += b * q_stride_b + h * q_stride_h
    q = load_rows(q_ptr, rows, q_stride_s, row_inside, D, PAD_D, EVEN_D)
    row_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, PAD_D], tl.float32)
    offsets = tl.arange(0, BLOCK_KV)
    if STATS:
        reference = statistic_reference(stats_lse_ptr + head * Sq, rows, row_inside, STATS)
        first_max, first_sum = row_max, row_sum
        stats_ptr += (head * tl.num_programs(0) + tile) * num_kv_blocks * (CHUNK // BLOCK_KV)
    for start in tl.range(0, count * CHUNK, BLOCK_KV, num_stages=STAGES):
        if TMA:
            # Descriptors take tiles of one block; the list gives one row number per tile.
            first_key = tl.load(index_ptr + start // CHUNK) * CHUNK + start % CHUNK
            k = k_ptr.load([head.to(tl.int32), first_key, 0]).reshape(BLOCK_KV, PAD_D)
            scores = tl.dot(q, k.T)
            if (first_key + BLOCK_KV > Skv) | (first_key < 0):
                keys = first_key + offsets
                scores = tl.where(((keys < Skv) & (keys >= 0))[None, :], scores, float("-inf"))
        else:
            if SCALAR:
                keys = tl.load(index_ptr + start // CHUNK) * CHUNK + start % CHUNK + offsets
                inside = (keys < Skv) & (keys >= 0)
            else:
                slot = (start + offsets) // CHUNK
                listed = slot < count
                keys = tl.load(index_ptr + slot, mask=listed, other=0) * CHUNK
                keys += (start + offsets) % CHUNK
                inside = listed & (keys < Skv) & (keys >= 0)
            k = load_rows(k_ptr, keys, k_stride_s, inside, D, PAD_D, EVEN_D)
            scores = dot_rows(q, k)
            scores = tl.where(inside[None, :], scores, float("-inf"))
        weights, decay, row_max, row_sum = online_softmax_update(
            scores, row_max, row_sum, scale_log2
        )
        if STATS:
            tile_max, tile_sum = tl.max(scores, 1) * scale_log2, tl.sum(weights, 1)
            value = tile_statistic(tile_max, tile_sum, row_max, row_sum, reference, STATS)
            if STATS > 1:
                in_first = start < CHUNK
                first_max = tl.where(in_first, row_max, first_max)
                first_sum = tl.where(in_first, row_sum, first_sum)
                value = tl.where(in_first, float("-inf") if STATS == 2 else 0.0, value)
            tl.store(stats_ptr + start // BLOCK_KV, value)
        if TMA:
            v = v_ptr.load([head.to(tl.int32), first_key, 0]).reshape(BLOCK_KV, PAD_D)
        else:
            v = load_rows(v_ptr, keys, v_stride_s, inside, D, PAD_D, EVEN_D)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    if STATS > 1:
        # The first block met no other: it is compared with all of them.
        base = tl.where(row_max == float("-inf"), 0.0, row_max)
        first_sum *= tl.math.exp2(first_max - base)
        value = tile_statistic(first_max, first_sum, row_max, row_sum, reference, STATS)
        tl.store(stats_ptr, value, mask=count > 0)
    if MEANS:
        acc, row_max, row_sum = attend_means(
            q, acc, row_max, row_sum, tl.load(num_means_ptr + lists), k_mean_ptr, v_mean_ptr,
            bias_ptr + lists * padded_means, head, num_kv_blocks, D, mean_stride_h, mean_stride_s,
            scale_log2, BLOCK_KV, PAD_D, EVEN_D, STAGES, TMA,
        )  # fmt: skip
    out_ptr += b * out_stride_b + h * out_stride_h
    store_rows(
        out_ptr,
        lse_ptr + head * Sq,
        acc,
        row_max,
        row_sum,
        rows,
        row_inside,
        out_stride_s,
        D,
        PAD_D,
    )


@triton.jit
def store_rows(
    out_ptr, lse_ptr, acc, row_max, row_sum, rows, inside, stride, D, PAD_D: tl.constexpr
):
    """Normalise and store the rows of one head; rows without keys give 0 and -inf."""
    filled = row_sum > 0
    safe_sum = tl.where(filled, row_sum, 1.0)
    lse = tl.where(filled, row_max + tl.math.log2(safe_sum), float("-inf"))
    tl.store(lse_ptr + rows, lse * 0.6931471805599453, mask=inside)
    columns = tl.arange(0, PAD_D)
    address = out_ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    keep = inside[:, None] & (columns < D)[None, :]
    tl.store(address, (acc / safe_sum[:, None]).to(out_ptr.dtype.element_ty), mask=keep)


def attend_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask,
    *,
    scale: float,
    compensate: bool = False,
    tangents: Tensor | None = None,
    config: LaunchConfig | None = None,
    stats_lse: Tensor | None = None,
    running: RunningStat | None = None,
    moved: MovedHeads | None = None,
) -> AttentionOutput:
    """Attend to the kept blocks; inputs as in ``block_sparse_attention``.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Skv, D).
        v: (B, H, Skv, D).
        mask: kept blocks.
        scale: factor on the logits.
        compensate: let skipped blocks count through their means.
        tangents: (B, H, Nkv, D) queries that these means are taken for, or None.
        config: launch configuration, by default the table's.
        stats_lse: (B, H, Sq) float32 LSE that block masses are taken against, or None for none;
            needs blocks of a multiple of ``config.block_kv`` keys.
        running: statistic of each kept block instead, lists visited from their start; needs the
            same.
        moved: heads with an order of their own, or None; neither with means nor with statistics.
    """
    if config is None:
        block_kv = mask.block_kv if isinstance(mask, BlockMask) else 0
        config = triton_config(q.device, q.shape[-1], block_kv)
        if q.dtype is torch.float32 and q.shape[-1] <= 128:
            config = FLOAT32_CONFIG
    if isinstance(mask, RaggedBlockMask):
        from vidsparse.kernels.triton_ragged_attention import attend_ragged_triton

        return attend_ragged_triton(
            q, k, v, mask, scale=scale, compensate=compensate, tangents=tangents, config=config
        )
    B, H, Sq, D = q.shape
    # The layout of q carries over, so that a caller's transposed view stays one.
    out = torch.empty_like(q)
    lse = torch.empty(B, H, Sq, dtype=torch.float32, device=q.device)
    block_q = tile_rows(config.block_q, mask.block_q)
    tiles = mask.num_q_blocks * triton.cdiv(mask.block_q, block_q)
    PAD_D = padded_head_size(D)
    parts, stats = lse, stats_kind(stats_lse, running)
    if stats:
        shape = (B, H, tiles, mask.num_kv_blocks, mask.block_kv // config.block_kv)
        parts = torch.empty(shape, dtype=torch.float32, device=q.device)
    scalar = mask.block_kv % config.block_kv == 0
    tma = [heads_descriptor(x, config.block_kv, PAD_D) if scalar else None for x in (k, v)]
    # A descriptor cannot be chosen by head.
    if None in tma or moved is not None:
        tma = []
    means = mean_tiles(k, v, mask, scale, tangents) if compensate else None
    _attention_kernel[(tiles, B * H)](
        q, *(tma or (k, v)), out, lse, mask.kv_num_blocks, mask.kv_indices,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        *shared_strides(mask.kv_num_blocks),
        H, Sq, k.shape[2], D, mask.num_kv_blocks, mask.block_q,
        scale * LOG2_E, lse if stats_lse is None else stats_lse.contiguous(), parts,
        *mean_arguments(means, lse, config.block_kv, PAD_D, tma=bool(tma)),
        *moved_arguments(moved, lse),
        BLOCK_Q=block_q, BLOCK_KV=config.block_kv, CHUNK=mask.block_kv, PAD_D=PAD_D,
        EVEN_D=PAD_D == D, STAGES=config.num_stages, SCALAR=scalar, TMA=bool(tma),
        STATS=stats, MEANS=compensate, MOVED=moved is not None, num_warps=config.num_warps,
    )  # fmt: skip
    return AttentionOutput(out, lse, dense_stats(parts, mask, running) if stats else None)


def mean_arguments(
    means: MeanTiles | None, unused: Tensor, block_kv: int, PAD_D: int, *, tma: bool
) -> tuple[Any, ...]:
    """Return the kernels' arguments about means; ``unused`` stands in without compensation."""
    if means is None:
        return unused, unused, unused, unused, 0, 0, 0
    k, v = means.k, means.v
    if tma:
        k, v = (heads_descriptor(x, block_kv, PAD_D) for x in (k, v))
    return k, v, means.bias, means.num_means, *means.k.stride()[1:3], means.bias.shape[-1]


def moved_arguments(moved: MovedHeads | None, unused: Tensor) -> tuple[Tensor, ...]:
    """Return the kernels' arguments about moved heads; ``unused`` stands in without any."""
    if moved is None:
        return unused, unused, unused, unused
    return moved.heads.view(torch.uint8), moved.q_order, moved.k, moved.v


def tile_rows(preferred: int, block_q: int) -> int:
    """Return the tile height in rows: the preferred one, less for small query blocks."""
    return max(16, min(preferred, 1 << (block_q - 1).bit_length()))
