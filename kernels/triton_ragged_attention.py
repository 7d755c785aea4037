"""Plain Triton attention for masks with variable blocks."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import RaggedBlockMask
from vidsparse.kernels.launch import LaunchConfig, padded_head_size
from vidsparse.kernels.triton_attention import (
    LOG2_E,
    attend_means,
    dot_rows,
    load_rows,
    mean_arguments,
    online_softmax_update,
    store_rows,
)
from vidsparse.kernels.triton_block_means import mean_tiles
from vidsparse.kernels.triton_permute import shared_strides
from vidsparse.kernels.triton_ragged_lists import chunk_lists, query_tiles

_CHUNK = 16


@triton.jit
def _ragged_attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, entries_ptr, count_ptr, block_ptr, first_ptr, end_ptr,
    q_stride_b, q_stride_h, q_stride_s, k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s, out_stride_b, out_stride_h, out_stride_s,
    list_stride_b, list_stride_h, tile_stride_b, tile_stride_h,
    H, Sq, Skv, D, capacity, scale_log2,
    k_mean_ptr, v_mean_ptr, bias_ptr, num_means_ptr, mean_stride_h, mean_stride_s, padded_means,
    mean_list_stride_b, mean_list_stride_h, num_kv_blocks,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, CHUNK: tl.constexpr,
    PAD_D: tl.constexpr, EVEN_D: tl.constexpr, STAGES: tl.constexpr,
    MEANS: tl.constexpr,
):  # fmt: skip
    """One program computes up to BLOCK_Q queries of one query block of one head."""
    head = tl.program_id(1).to(tl.int64)
    b, h = head // H, head % H
    item = b * tile_stride_b + h * tile_stride_h + tl.program_id(0)
    rows = tl.load(first_ptr + item) + tl.arange(0, BLOCK_Q)
    row_inside = (rows >= 0) & (rows < tl.minimum(tl.load(end_ptr + item), Sq))
    block = tl.load(block_ptr + item)
    lists = b * list_stride_b + h * list_stride_h + block
    count = tl.load(count_ptr + lists)
    entries_ptr += lists * capacity
    k_ptr += b * k_stride_b + h * k_stride_h
    v_ptr += b * v_stride_b + h * v_stride_h
    q_ptr += b * q_stride_b + h * q_stride_h
    q = load_rows(q_ptr, rows, q_stride_s, row_inside, D, PAD_D, EVEN_D)
    row_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, PAD_D], tl.float32)
    offsets = tl.arange(0, BLOCK_KV)
    # Unused tiles have no rows and need no keys.
    used = tl.max(row_inside.to(tl.int32), 0) > 0
    count = tl.where(used, count, 0)
    for start in tl.range(0, count * CHUNK, BLOCK_KV, num_stages=STAGES):
        slot = (start + offsets) // CHUNK
        entry = tl.load(entries_ptr + slot, mask=slot < count, other=0)
        keys = (entry >> 8) + offsets % CHUNK
        inside = (offsets % CHUNK < (entry & 255)) & (keys < Skv)
        k = load_rows(k_ptr, keys, k_stride_s, inside, D, PAD_D, EVEN_D)
        scores = dot_rows(q, k)
        scores = tl.where(inside[None, :], scores, float("-inf"))
        weights, decay, row_max, row_sum = online_softmax_update(
            scores, row_max, row_sum, scale_log2
        )
        v = load_rows(v_ptr, keys, v_stride_s, inside, D, PAD_D, EVEN_D)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    if MEANS:
        lists = b * mean_list_stride_b + h * mean_list_stride_h + block
        num_means = tl.where(used, tl.load(num_means_ptr + lists), 0)
        acc, row_max, row_sum = attend_means(
            q, acc, row_max, row_sum, num_means, k_mean_ptr, v_mean_ptr,
            bias_ptr + lists * padded_means, head, num_kv_blocks, D, mean_stride_h, mean_stride_s,
            scale_log2, BLOCK_KV, PAD_D, EVEN_D, STAGES, False,
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


def attend_ragged_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: RaggedBlockMask,
    *,
    scale: float,
    compensate: bool,
    tangents: Tensor | None,
    config: LaunchConfig,
) -> AttentionOutput:
    """Attend to the kept blocks; inputs as in ``block_sparse_attention``."""
    B, H, Sq, D = q.shape
    # Offsets that do not cover all queries leave rows that no program writes.
    out = torch.zeros_like(q)
    lse = torch.full((B, H, Sq), -torch.inf, dtype=torch.float32, device=q.device)
    lists = chunk_lists(mask, _CHUNK)
    tiles = query_tiles(mask.q_offsets, Sq, config.block_q)
    PAD_D = padded_head_size(D)
    means = mean_tiles(k, v, mask, scale, tangents) if compensate else None
    mean_lists = (0, 0) if means is None else shared_strides(means.num_means)
    _ragged_attention_kernel[(tiles.block.shape[-1], B * H)](
        q, k, v, out, lse, lists.entries, lists.num_chunks, *tiles,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        *shared_strides(lists.num_chunks), *shared_strides(tiles.block),
        H, Sq, k.shape[2], D, lists.entries.shape[-1], scale * LOG2_E,
        *mean_arguments(means, lse, config.block_kv, PAD_D, tma=False), *mean_lists,
        mask.num_kv_blocks,
        BLOCK_Q=config.block_q, BLOCK_KV=max(config.block_kv, _CHUNK), CHUNK=_CHUNK,
        PAD_D=PAD_D, EVEN_D=PAD_D == D, STAGES=config.num_stages, MEANS=compensate,
        num_warps=config.num_warps,
    )  # fmt: skip
    return AttentionOutput(out, lse)
