"""Attend again where the first tile of keys was no reference for the weights of the others."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.launch import padded_head_size
from vidsparse.kernels.moved_heads import MovedHeads
from vidsparse.kernels.triton_attention import (
    LOG2_E,
    attend_means,
    load_rows,
    mean_arguments,
    moved_arguments,
    online_softmax_update,
    store_rows,
    tokens_at,
)
from vidsparse.kernels.triton_block_means import MeanTiles
from vidsparse.kernels.triton_permute import shared_strides
from vidsparse.kernels.triton_ragged_lists import ChunkLists, QueryTiles

# Queries of one tile, and tiles that one program looks at: nearly all have nothing to do.
_ROWS, _TILES = 64, 8
# Keys that the ragged kernel takes at once.
_RAGGED_KEYS = 64


@triton.jit
def _attend_keys(
    q, acc, row_max, row_sum, keys, valid, k_ptr, v_ptr, k_stride_s, v_stride_s, D, scale_log2,
    PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """Fold some keys into the rows; returns their scores too."""
    k = load_rows(k_ptr, keys, k_stride_s, valid, D, PAD_D, EVEN_D)
    scores = tl.where(valid[None, :], tl.dot(q, k.T), float("-inf"))
    weights, decay, row_max, row_sum = online_softmax_update(scores, row_max, row_sum, scale_log2)
    v = load_rows(v_ptr, keys, v_stride_s, valid, D, PAD_D, EVEN_D)
    return tl.dot(weights.to(v.dtype), v, acc * decay[:, None]), row_max, row_sum, scores


@triton.jit
def _retry_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, count_ptr, index_ptr,
    q_stride_b, q_stride_h, q_stride_s, k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s, out_stride_b, out_stride_h, out_stride_s,
    list_stride_b, list_stride_h, H, Sq, Skv, D, num_kv_blocks, block_q, scale_log2,
    other_lse_ptr, parts_ptr, parts,
    k_mean_ptr, v_mean_ptr, bias_ptr, num_means_ptr, mean_stride_h, mean_stride_s, padded_means,
    moved_ptr, q_order_ptr, k_moved_ptr, v_moved_ptr,
    ROWS: tl.constexpr, TILES: tl.constexpr, CHUNK: tl.constexpr, TILE_KV: tl.constexpr,
    PAD_D: tl.constexpr, EVEN_D: tl.constexpr, STATS: tl.constexpr,
    MEANS: tl.constexpr, MOVED: tl.constexpr,
):  # fmt: skip
    """One program looks through TILES x ROWS queries of one head for an LSE of NaN."""
    head = tl.program_id(1).to(tl.int64)
    b, h = head // H, head % H
    q_ptr += b * q_stride_b + h * q_stride_h
    k_ptr += b * k_stride_b + h * k_stride_h
    v_ptr += b * v_stride_b + h * v_stride_h
    out_ptr += b * out_stride_b + h * out_stride_h
    lse_ptr += head * Sq
    if MOVED:  # noqa: SIM102
        if tl.load(moved_ptr + head) != 0:
            k_ptr, k_stride_s = k_moved_ptr + head * Skv * D, D
            v_ptr, v_stride_s = v_moved_ptr + head * Skv * D, D
    for tile in range(tl.program_id(0) * TILES, (tl.program_id(0) + 1) * TILES):
        rows = tile * ROWS + tl.arange(0, ROWS)
        inside = rows < Sq
        if MOVED:
            rows, inside = tokens_at(q_order_ptr + head * Sq, rows, inside, Sq)
        lse = tl.load(lse_ptr + rows, mask=inside, other=0.0)
        if tl.sum((lse != lse).to(tl.int32), 0) > 0:
            lists = b * list_stride_b + h * list_stride_h + tile * ROWS // block_q
            count = tl.minimum(tl.load(count_ptr + lists), num_kv_blocks)
            q = load_rows(q_ptr, rows, q_stride_s, inside, D, PAD_D, EVEN_D)
            row_max = tl.full([ROWS], float("-inf"), tl.float32)
            row_sum = tl.zeros([ROWS], tl.float32)
            acc = tl.zeros([ROWS, PAD_D], tl.float32)
            mass = 0.0
            if STATS:
                other = tl.load(other_lse_ptr + head * Sq + rows, mask=inside, other=float("inf"))
                # Rows outside and rows without keys weigh nothing.
                other = tl.where(other == float("-inf"), float("inf"), other) * 1.4426950408889634
                # One slot has a part per warp of each 64 rows: the first part takes it all.
                groups = parts // 4
                tiles = tl.cdiv(Sq, block_q) * (block_q // (ROWS * groups))
                own = (head * tiles + tile // groups) * num_kv_blocks
            for start in tl.range(0, count * CHUNK, TILE_KV, num_stages=1):
                block = tl.load(index_ptr + lists * num_kv_blocks + start // CHUNK)
                keys = block * CHUNK + start % CHUNK + tl.arange(0, TILE_KV)
                valid = (keys < Skv) & (keys >= 0)
                acc, row_max, row_sum, scores = _attend_keys(
                    q, acc, row_max, row_sum, keys, valid, k_ptr, v_ptr, k_stride_s, v_stride_s, D,
                    scale_log2, PAD_D, EVEN_D,
                )  # fmt: skip
                if STATS:
                    mass += tl.sum(tl.math.exp2(scores * scale_log2 - other[:, None]))
                    if start % CHUNK == CHUNK - TILE_KV:
                        place = (own + start // CHUNK) * parts + tile % groups * 4
                        part = tl.arange(0, 4)
                        tl.store(parts_ptr + place + part, tl.where(part == 0, mass, 0.0))
                        mass = 0.0
            if MEANS:
                acc, row_max, row_sum = attend_means(
                    q, acc, row_max, row_sum, tl.load(num_means_ptr + lists), k_mean_ptr,
                    v_mean_ptr, bias_ptr + lists * padded_means, head, num_kv_blocks, D,
                    mean_stride_h, mean_stride_s, scale_log2, TILE_KV, PAD_D, EVEN_D, 1, False,
                )  # fmt: skip
            store_rows(
                out_ptr, lse_ptr, acc, row_max, row_sum, rows, inside, out_stride_s, D, PAD_D
            )


def attend_again(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: BlockMask,
    scale: float,
    stats: tuple[Tensor, Tensor] | None = None,
    means: MeanTiles | None = None,
    moved: MovedHeads | None = None,
) -> None:
    """Fill in the output of every 64 rows that hold an LSE of NaN, with a running maximum.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Skv, D).
        v: (B, H, Skv, D).
        out: (B, H, Sq, D), changed in place.
        lse: (B, H, Sq), changed in place.
        mask: kept blocks of a multiple of 64 queries and of 16, 32, 64 or 128 keys.
        scale: factor on the logits.
        stats: the LSE (B, H, Sq) that masses are taken against, and the masses (B, H, query tiles,
            list slots, 4 per 64 rows of a tile) float32, changed in place; None for none.
        means: of the key blocks, to compensate with; None for none.
        moved: heads with an order of their own, or None; not with ``stats`` or ``means``.
    """
    B, H, Sq, D = q.shape
    PAD_D = padded_head_size(D)
    _retry_kernel[(triton.cdiv(Sq, _ROWS * _TILES), B * H)](
        q, k, v, out, lse, mask.kv_num_blocks, mask.kv_indices,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        *shared_strides(mask.kv_num_blocks), H, Sq, k.shape[2], D, mask.num_kv_blocks,
        mask.block_q, scale * LOG2_E, *(stats or (lse, lse)),
        0 if stats is None else stats[1].shape[-1],
        *mean_arguments(means, lse, 64, PAD_D, tma=False), *moved_arguments(moved, lse),
        ROWS=_ROWS, TILES=_TILES, CHUNK=mask.block_kv, TILE_KV=min(64, mask.block_kv), PAD_D=PAD_D,
        EVEN_D=PAD_D == D, STATS=stats is not None,
        MEANS=means is not None, MOVED=moved is not None, num_warps=4,
    )  # fmt: skip


@triton.jit
def _retry_ragged_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, block_ptr, first_ptr, end_ptr,
    num_wide_ptr, num_chunks_ptr, wide_ptr, entries_ptr,
    q_stride_b, q_stride_h, q_stride_s, k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s, out_stride_b, out_stride_h, out_stride_s,
    H, Sq, Skv, D, Nq, tiles, wide_capacity, capacity, scale_log2,
    k_mean_ptr, v_mean_ptr, bias_ptr, num_means_ptr, mean_stride_h, mean_stride_s, padded_means,
    num_kv_blocks,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr,
    PAD_D: tl.constexpr, EVEN_D: tl.constexpr, MEANS: tl.constexpr,
):  # fmt: skip
    """One program looks through one query tile of one head for an LSE of NaN."""
    head = tl.program_id(1).to(tl.int64)
    b, h = head // H, head % H
    item = head * tiles + tl.program_id(0)
    rows = tl.load(first_ptr + item) + tl.arange(0, ROWS)
    inside = (rows >= 0) & (rows < tl.minimum(tl.load(end_ptr + item), Sq))
    lse = tl.load(lse_ptr + head * Sq + rows, mask=inside, other=0.0)
    if tl.sum((lse != lse).to(tl.int32), 0) > 0:
        lists = head * Nq + tl.load(block_ptr + item)
        k_ptr += b * k_stride_b + h * k_stride_h
        v_ptr += b * v_stride_b + h * v_stride_h
        q_ptr += b * q_stride_b + h * q_stride_h
        out_ptr += b * out_stride_b + h * out_stride_h
        q = load_rows(q_ptr, rows, q_stride_s, inside, D, PAD_D, EVEN_D)
        row_max = tl.full([ROWS], float("-inf"), tl.float32)
        row_sum = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, PAD_D], tl.float32)
        place = tl.arange(0, KEYS)
        count = tl.load(num_chunks_ptr + lists)
        for start in tl.range(0, count * CHUNK, KEYS, num_stages=1):
            slot = (start + place) // CHUNK
            entry = tl.load(entries_ptr + lists * capacity + slot, mask=slot < count, other=0)
            keys = (entry >> 8) + place % CHUNK
            valid = (place % CHUNK < (entry & 255)) & (keys < Skv)
            acc, row_max, row_sum, _scores = _attend_keys(
                q, acc, row_max, row_sum, keys, valid, k_ptr, v_ptr, k_stride_s, v_stride_s, D,
                scale_log2, PAD_D, EVEN_D,
            )  # fmt: skip
        for start in tl.range(0, tl.load(num_wide_ptr + lists) * WIDE, KEYS, num_stages=1):
            first = tl.load(wide_ptr + lists * wide_capacity + start // WIDE)
            keys = first + start % WIDE + place
            acc, row_max, row_sum, _scores = _attend_keys(
                q, acc, row_max, row_sum, keys, keys < Skv, k_ptr, v_ptr, k_stride_s, v_stride_s, D,
                scale_log2, PAD_D, EVEN_D,
            )  # fmt: skip
        if MEANS:
            acc, row_max, row_sum = attend_means(
                q, acc, row_max, row_sum, tl.load(num_means_ptr + lists), k_mean_ptr, v_mean_ptr,
                bias_ptr + lists * padded_means, head, num_kv_blocks, D, mean_stride_h,
                mean_stride_s, scale_log2, KEYS, PAD_D, EVEN_D, 1, False,
            )  # fmt: skip
        store_rows(
            out_ptr, lse_ptr + head * Sq, acc, row_max, row_sum, rows, inside, out_stride_s, D,
            PAD_D,
        )  # fmt: skip


def attend_ragged_again(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lists: ChunkLists,
    tiles: QueryTiles,
    scale: float,
    *,
    rows: int,
    wide: int,
    means: MeanTiles | None = None,
) -> None:
    """Fill in the output of every query tile that holds an LSE of NaN; see ``attend_again``.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Skv, D).
        v: (B, H, Skv, D).
        out: (B, H, Sq, D), changed in place.
        lse: (B, H, Sq), changed in place.
        lists: kept keys of each query block, contiguous, leading with (B, H).
        tiles: query tiles, likewise.
        scale: factor on the logits.
        rows: queries of a tile.
        wide: keys of a wide tile, a multiple of 64.
        means: of the key blocks, leading with (B, H), to compensate with; None for none.
    """
    B, H, Sq, D = q.shape
    PAD_D = padded_head_size(D)
    _retry_ragged_kernel[(tiles.block.shape[-1], B * H)](
        q, k, v, out, lse, *tiles, lists.num_wide, lists.num_chunks, lists.wide, lists.entries,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        H, Sq, k.shape[2], D, lists.num_chunks.shape[-1], tiles.block.shape[-1],
        lists.wide.shape[-1], lists.entries.shape[-1], scale * LOG2_E,
        *mean_arguments(means, lse, _RAGGED_KEYS, PAD_D, tma=False),
        0 if means is None else means.k.shape[2],
        ROWS=rows, KEYS=_RAGGED_KEYS, WIDE=wide, CHUNK=lists.chunk, PAD_D=PAD_D,
        EVEN_D=PAD_D == D, MEANS=means is not None, num_warps=8,
    )  # fmt: skip
