"""Warp-specialised block-sparse attention for Hopper on int8 queries and keys and 16-bit values.

Logits as in ``gluon_attention_8bit``, weights and values as in ``gluon_attention``: nearly as fast
as with 8-bit values, at a quarter of the error. Weights are taken against the maximum of the first
tile; rows that overflow get the LSE NaN and are attended to again.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from vidsparse.kernels.gluon_attention import (
    _advance,
    _keys,
    _pack_weights,
    _producer,
    _unpack_weights,
    _values,
)
from vidsparse.kernels.gluon_attention_8bit import _MAGIC, _MAGIC_BITS, _scale_boxes, _tile_scale


@gluon.jit
def _consumer(GROUP: gl.constexpr, o_desc, q_bufs, k_bufs, v_bufs, o_bufs, q_full, k_full, k_empty,
              v_full, v_empty, lse_ptr, q_scale_ptr, lse_shift_ptr, k_scale_ptr, index_ptr, head,
              first_row, tiles, count, limit, seq_q,
              BOXES: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Attend 64 rows."""
    ROWS: gl.constexpr = q_bufs.shape[2]
    P: gl.constexpr = q_bufs.shape[3]
    D: gl.constexpr = v_bufs.shape[3]
    TILE_KV: gl.constexpr = k_bufs.shape[2]
    WARPS: gl.constexpr = gl.num_warps()
    dtype: gl.constexpr = v_bufs.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, TILE_KV, 32])  # fmt: skip
    ACC: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, D, 16])  # fmt: skip
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=ACC, k_width=2)
    SCORE_ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    ACC_ROW: gl.constexpr = gl.SliceLayout(1, ACC)

    q = q_bufs.index(GROUP).reshape([ROWS, P])
    acc = gl.zeros([ROWS, D], gl.float32, ACC)
    no_scores = gl.zeros([ROWS, TILE_KV], gl.int32, SCORES)
    row_max = gl.full([ROWS], -float("inf"), gl.float32, SCORE_ROW)
    row_sum = gl.zeros([ROWS], gl.float32, SCORE_ROW)
    rows = first_row + GROUP * ROWS + gl.arange(0, ROWS, layout=SCORE_ROW)
    place = head.to(gl.int64) * seq_q + rows
    q_scale = gl.load(q_scale_ptr + place, mask=rows < seq_q, other=1.0)
    if tiles > 0:
        mbarrier.wait(q_full, 0)
        mbarrier.wait(k_full.index(0), 0)
        s = warpgroup_mma(q, _keys(k_bufs, 0), no_scores, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(0), count=1)
        first = _scale_boxes(s, k_scale_ptr, index_ptr, tiles - 1, count, BOXES, SCORES)
        if limit < TILE_KV:
            column = gl.arange(0, TILE_KV, layout=gl.SliceLayout(0, SCORES))
            first = gl.where(gl.expand_dims(column, 0) < limit, first, -float("inf"))
        row_max = gl.max(first, axis=1) * q_scale
        p = gl.exp2(first * gl.expand_dims(q_scale, 1) - gl.expand_dims(row_max, 1))
        row_sum = gl.sum(p, axis=1)
        packed = _pack_weights(p, dtype)
        k_stage = 1 if STAGES > 1 else 0
        k_phase = 0 if STAGES > 1 else 1
        v_stage = 0
        v_phase = 0
        if tiles > 1:
            mbarrier.wait(k_full.index(k_stage), k_phase)
        for done in range(1, tiles):
            s_next = warpgroup_mma(
                q, _keys(k_bufs, k_stage), no_scores, use_acc=False, is_async=True
            )
            mbarrier.wait(v_full.index(v_stage), v_phase)
            p16 = _unpack_weights(packed, dtype, ROWS, TILE_KV, WEIGHTS)
            acc_next = warpgroup_mma(p16, _values(v_bufs, v_stage), acc, is_async=True)
            if BOXES == 1:
                scale = q_scale * _tile_scale(k_scale_ptr, index_ptr, tiles - 1 - done, count)
            s = warpgroup_mma_wait(1, deps=[s_next])
            mbarrier.arrive(k_empty.index(k_stage), count=1)
            if BOXES == 1:
                scores = (s + _MAGIC_BITS).to(gl.float32, bitcast=True)
                base = row_max + _MAGIC * scale
            else:
                scores = _scale_boxes(
                    s, k_scale_ptr, index_ptr, tiles - 1 - done, count, BOXES, SCORES
                )
                scale = q_scale
                base = row_max
            p = gl.exp2(scores * gl.expand_dims(scale, 1) - gl.expand_dims(base, 1))
            row_sum += gl.sum(p, axis=1)
            used_stage = v_stage
            v_stage = k_stage
            v_phase = k_phase
            k_stage, k_phase = _advance(k_stage, k_phase, STAGES)
            # Ends the basic block: without it ptxas waits for values before the exponentials.
            if done + 1 < tiles:
                mbarrier.wait(k_full.index(k_stage), k_phase)
            acc = warpgroup_mma_wait(0, deps=[acc_next, p16])[0]
            mbarrier.arrive(v_empty.index(used_stage), count=1)
            packed = _pack_weights(p, dtype)
        mbarrier.wait(v_full.index(v_stage), v_phase)
        p16 = _unpack_weights(packed, dtype, ROWS, TILE_KV, WEIGHTS)
        acc = warpgroup_mma(p16, _values(v_bufs, v_stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
    filled = row_sum > 0
    safe_sum = gl.where(filled, row_sum, 1.0)
    lse = (row_max + gl.log2(safe_sum)) * 0.6931471805599453
    lse += gl.load(lse_shift_ptr + place, mask=rows < seq_q, other=0.0)
    # NaN compares as false: a row passes only with room to spare.
    largest = gl.convert_layout(gl.max(gl.abs(acc), axis=1), SCORE_ROW, assert_trivial=True)
    lse = gl.where((row_sum < 1e30) & (largest < 1e37), lse, float("nan"))
    empty = (row_sum == 0) & (largest == 0)
    gl.store(lse_ptr + place, gl.where(empty, -float("inf"), lse), mask=rows < seq_q)
    factor = gl.convert_layout(1.0 / safe_sum, ACC_ROW, assert_trivial=True)
    out = (acc * gl.expand_dims(factor, 1)).to(o_bufs.dtype)
    o_bufs.index(GROUP).reshape([ROWS, D]).store(out)
    fence_async_shared()
    tma.async_copy_shared_to_global(
        o_desc, [head, first_row + GROUP * ROWS, 0], o_bufs.index(GROUP)
    )
    tma.store_wait(0)


@gluon.jit
def attention_mixed_kernel(
    q_desc, k_desc, v_desc, o_desc, lse_ptr, q_scale_ptr, lse_shift_ptr, k_scale_ptr,
    order_ptr, count_ptr, index_ptr,
    list_stride_h, seq_q, seq_kv, num_q_blocks, num_kv_blocks, tiles_per_block,
    TILE_KV: gl.constexpr, CHUNK: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """One CTA computes 128 queries of one head."""
    GROUPS: gl.constexpr = 2
    ROWS: gl.constexpr = q_desc.block_type.shape[1]
    P: gl.constexpr = q_desc.block_type.shape[2]
    D: gl.constexpr = v_desc.block_type.shape[2]
    BOXES: gl.constexpr = TILE_KV // CHUNK
    item = gl.load(order_ptr + gl.program_id(0))
    tiles_per_head = num_q_blocks * tiles_per_block
    head = item // tiles_per_head
    q_tile = item - head * tiles_per_head
    lists = head * list_stride_h + q_tile // tiles_per_block
    index_ptr += lists.to(gl.int64) * num_kv_blocks
    k_scale_ptr += head * num_kv_blocks
    count = gl.minimum(gl.load(count_ptr + lists), num_kv_blocks)
    first_row = q_tile * (ROWS * GROUPS)
    tiles = (count + BOXES - 1) // BOXES
    # Valid keys of the first tile: whole blocks, then the last block as far as the sequence goes.
    last = gl.load(index_ptr + gl.maximum(count - 1, 0))
    limit = (count - 1 - (tiles - 1) * BOXES) * CHUNK + gl.minimum(CHUNK, seq_kv - last * CHUNK)
    limit = gl.maximum(limit, 1)

    q_bufs = gl.allocate_shared_memory(
        q_desc.dtype, [GROUPS, 1, ROWS, P], q_desc.layout)  # fmt: skip
    o_bufs = gl.allocate_shared_memory(
        o_desc.dtype, [GROUPS, 1, ROWS, D], o_desc.layout)  # fmt: skip
    k_bufs = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, TILE_KV, P], k_desc.layout)
    v_bufs = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 1, TILE_KV, D], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=GROUPS)
        mbarrier.init(v_empty.index(i), count=GROUPS)
    # The tuple must be written out: constants are lost when they pass through a variable.
    gl.warp_specialize([
        (_consumer, (0, o_desc, q_bufs, k_bufs, v_bufs, o_bufs, q_full, k_full, k_empty, v_full, v_empty, lse_ptr, q_scale_ptr, lse_shift_ptr, k_scale_ptr, index_ptr, head, first_row, tiles, count, limit, seq_q, BOXES, STAGES)),  # noqa: E501
        (_consumer, (1, o_desc, q_bufs, k_bufs, v_bufs, o_bufs, q_full, k_full, k_empty, v_full, v_empty, lse_ptr, q_scale_ptr, lse_shift_ptr, k_scale_ptr, index_ptr, head, first_row, tiles, count, limit, seq_q, BOXES, STAGES)),  # noqa: E501
        (_producer, (q_desc, k_desc, v_desc, k_desc, v_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, index_ptr, head, first_row, count, tiles, 0, seq_kv, CHUNK, GROUPS, STAGES, False)),  # noqa: E501
    ], [4, 1], [REGISTERS, 24])  # fmt: skip
