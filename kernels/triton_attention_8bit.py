"""Plain Triton attention on 8-bit inputs: Ada, Hopper and newer, and Triton's CPU interpreter."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.backends import triton_is_interpreted
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.launch import LaunchConfig, padded_head_size
from vidsparse.kernels.quantize import QuantizedQKV
from vidsparse.kernels.triton_attention import online_softmax_update, store_rows, tile_rows
from vidsparse.kernels.triton_permute import shared_strides
from vidsparse.kernels.triton_quantize import to_e4m3

CONFIG = LaunchConfig(128, 128, 8, 3)


@triton.jit
def _attention_8bit_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, q_scale_ptr, lse_shift_ptr, k_scale_ptr, v_scale_ptr,
    count_ptr, index_ptr, out_stride_b, out_stride_h, out_stride_s, list_stride_b, list_stride_h,
    H, Sq, Skv, D, padded, num_kv_blocks, block_q,
    BLOCK_Q: tl.constexpr, TILE_KV: tl.constexpr, BLOCK_KV: tl.constexpr, P: tl.constexpr,
    PAD_D: tl.constexpr, STAGES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program computes BLOCK_Q queries of one head."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    b, h = head // H, head % H
    tiles_per_block = tl.cdiv(block_q, BLOCK_Q)
    block = tile // tiles_per_block
    rows = block * block_q + (tile % tiles_per_block) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = rows < tl.minimum((block + 1) * block_q, Sq)
    lists = b * list_stride_b + h * list_stride_h + block
    count = tl.minimum(tl.load(count_ptr + lists), num_kv_blocks)
    index_ptr += lists * num_kv_blocks
    channels, columns = tl.arange(0, P), tl.arange(0, PAD_D)
    q = tl.load(
        q_ptr + (head * Sq + rows)[:, None] * P + channels[None, :], mask=inside[:, None], other=0
    )
    q_scale = tl.load(q_scale_ptr + head * Sq + rows, mask=inside, other=1.0)
    row_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, PAD_D], tl.float32)
    place = tl.arange(0, TILE_KV)
    # Keys in the order in which the values lie, see quantize.value_order.
    order = place // 16 * 16 + place % 4 // 2 * 8 + place % 16 // 4 * 2 + place % 2
    for start in tl.range(0, count * BLOCK_KV, TILE_KV, num_stages=STAGES):
        number = tl.load(index_ptr + start // BLOCK_KV)
        number = tl.minimum(tl.maximum(number, 0), num_kv_blocks - 1)
        first = number * BLOCK_KV + start % BLOCK_KV
        keys = first + order
        k = tl.load(
            k_ptr + (head * Skv + keys)[:, None] * P + channels[None, :],
            mask=(keys < Skv)[:, None], other=0,
        )  # fmt: skip
        unit = tl.load(k_scale_ptr + head * num_kv_blocks + number)
        scores = tl.dot(q, k.T).to(tl.float32) * unit
        scores = tl.where((keys < Skv)[None, :], scores * q_scale[:, None], float("-inf"))
        weights, decay, row_max, row_sum = online_softmax_update(scores, row_max, row_sum, 1.0)
        v = tl.load(
            v_ptr + (head * D + columns)[:, None] * padded + (first + place)[None, :],
            mask=(columns < D)[:, None] & (first + place < padded)[None, :], other=0.0,
        )  # fmt: skip
        # 8-bit products keep 14 bits of their sums: each tile's is added in float32.
        weights = to_e4m3(weights * 256.0, INTERPRETED)
        acc = tl.dot(weights, v.T, acc * decay[:, None], max_num_imprecise_acc=TILE_KV)
    shift = tl.load(lse_shift_ptr + head * Sq + rows, mask=inside, other=0.0)
    v_scale = tl.load(v_scale_ptr + head) / 256.0
    out_ptr += b * out_stride_b + h * out_stride_h
    store_rows(
        out_ptr, lse_ptr + head * Sq, acc * v_scale, row_max + shift * 1.4426950408889634,
        row_sum, rows, inside, out_stride_s, D, PAD_D,
    )  # fmt: skip


def attend_quantized_triton(
    x: QuantizedQKV, mask: BlockMask, out: Tensor, config: LaunchConfig = CONFIG
) -> AttentionOutput:
    """Attend to the kept blocks.

    Args:
        x: quantised inputs.
        mask: kept blocks of ``x.block_kv`` keys, a power of two of at least 32.
        out: (B, H, Sq, D), written to.
        config: launch configuration; tiles of more keys than a block are cut to it.
    """
    B, H, Sq, P = x.q.shape
    D = x.v.shape[2]
    lse = torch.empty(B, H, Sq, dtype=torch.float32, device=out.device)
    block_q = tile_rows(config.block_q, mask.block_q)
    _attention_8bit_kernel[(mask.num_q_blocks * triton.cdiv(mask.block_q, block_q), B * H)](
        x.q, x.k, x.v, out, lse, x.q_scale, x.lse_shift, x.k_scale, x.v_scale,
        mask.kv_num_blocks, mask.kv_indices, *out.stride()[:3],
        *shared_strides(mask.kv_num_blocks),
        H, Sq, x.seq_kv, D, x.v.shape[3], mask.num_kv_blocks, mask.block_q,
        BLOCK_Q=block_q, TILE_KV=min(config.block_kv, x.block_kv), BLOCK_KV=x.block_kv, P=P,
        PAD_D=padded_head_size(D), STAGES=config.num_stages,
        INTERPRETED=triton_is_interpreted(), num_warps=config.num_warps,
    )  # fmt: skip
    return AttentionOutput(out, lse)
