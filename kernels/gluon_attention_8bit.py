"""Warp-specialised block-sparse attention for Hopper on 8-bit inputs, in Gluon.

Logits come from an int8 product, weights are rounded to e4m3 and multiply e4m3 values.
The CTA is that of ``gluon_attention``; what differs:

- An int32 logit becomes a float by adding its bits to those of 2^23 + 2^22, a conversion without
  conversion instructions, which would run on the unit that computes exponentials.
- Values lie transposed, as 8-bit products need them, with the keys of each 16 in the order that
  makes the accumulator layout of the logits the operand layout of the weights
  (``quantize.value_order``).
- Hopper's 8-bit products keep 14 bits of their sums: each tile's product starts from 0 and is added
  to the running output in float32.
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

from vidsparse.kernels.gluon_rings import advance, keys_of, listed_rows, load_boxes

# 2^23 + 2^22 as a float; its bits plus a small integer are the bits of the sum.
_MAGIC = gl.constexpr(12582912.0)
_MAGIC_BITS = gl.constexpr(0x4B400000)
# Weights are at most 2^8, near the largest e4m3 number, 448.
_SHIFT = gl.constexpr(8.0)


@gluon.jit
def _load_value_boxes(desc, full, buffers, stage, head, columns):
    """Fill one stage of transposed values with boxes of keys that start at ``columns``."""
    CHUNK: gl.constexpr = desc.block_type.shape[2]
    BOXES: gl.constexpr = buffers.shape[3] // CHUNK
    mbarrier.expect(full.index(stage), BOXES * desc.block_type.nbytes)
    for box in gl.static_range(BOXES):
        tma.async_copy_global_to_shared(
            desc, [head, 0, columns[box]], full.index(stage),
            buffers.index(stage).slice(box * CHUNK, CHUNK, dim=2),
        )  # fmt: skip


@gluon.jit
def _producer(q_desc, k_desc, v_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full,
              v_empty, index_ptr, head, first_row, count, tiles, padded_kv,
              CHUNK: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    ROWS: gl.constexpr = q_desc.block_type.shape[1]
    BOXES: gl.constexpr = k_bufs.shape[2] // CHUNK
    if tiles > 0:
        mbarrier.expect(q_full, GROUPS * q_desc.block_type.nbytes)
        for group in gl.static_range(GROUPS):
            tma.async_copy_global_to_shared(
                q_desc, [head, first_row + group * ROWS, 0], q_full, q_bufs.index(group)
            )
        stage = 0
        # Waiting for the phase before the first one passes at once.
        phase = 1
        for done in range(0, tiles):
            # Past the end of the keys, padding included, a box is filled with zeros.
            rows = listed_rows(index_ptr, tiles - 1 - done, count, padded_kv, CHUNK, BOXES)
            mbarrier.wait(k_empty.index(stage), phase)
            load_boxes(k_desc, k_full, k_bufs, stage, head, rows)
            mbarrier.wait(v_empty.index(stage), phase)
            _load_value_boxes(v_desc, v_full, v_bufs, stage, head, rows)
            stage, phase = advance(stage, phase, STAGES)


@gluon.jit
def _values(v_bufs, stage):
    D: gl.constexpr = v_bufs.shape[2]
    TILE_KV: gl.constexpr = v_bufs.shape[3]
    return v_bufs.index(stage).reshape([D, TILE_KV]).permute((1, 0))


@gluon.jit
def _integer_softmax(scores, row_max, row_sum, row_scale):
    """Fold one tile of int32 logits into the running maximum and sum, in scaled base-2 units."""
    # The maximum of integers takes half the instructions: one compares three.
    top = gl.max(scores, axis=1).to(gl.float32)
    new_max = gl.maximum(row_max, top * row_scale)
    decay = gl.exp2(row_max - new_max)
    base = new_max - _SHIFT + _MAGIC * row_scale
    shifted = (scores + _MAGIC_BITS).to(gl.float32, bitcast=True)
    weights = gl.exp2(shifted * gl.expand_dims(row_scale, 1) - gl.expand_dims(base, 1))
    return weights, decay, new_max, row_sum * decay + gl.sum(weights, axis=1)


@gluon.jit
def _softmax(scores, row_max, row_sum, row_scale):
    """Fold one tile of float logits, some of them -inf."""
    new_max = gl.maximum(row_max, gl.max(scores, axis=1) * row_scale)
    decay = gl.exp2(row_max - new_max)
    base = gl.expand_dims(new_max - _SHIFT, 1)
    weights = gl.exp2(scores * gl.expand_dims(row_scale, 1) - base)
    return weights, decay, new_max, row_sum * decay + gl.sum(weights, axis=1)


_ROUND_4 = gl.constexpr("""{
    .reg .b16 a, b;
    cvt.rn.satfinite.e4m3x2.f32 a, $2, $1;
    cvt.rn.satfinite.e4m3x2.f32 b, $4, $3;
    mov.b32 $0, {a, b};
}""")


@gluon.jit
def _pack_weights(p):
    """Round to e4m3 and pack four consecutive weights of the operand into one int32.

    Carried from step to step as bytes they would cost an instruction per byte.
    """
    ROWS: gl.constexpr = p.shape[0]
    KEYS: gl.constexpr = p.shape[1]
    x = p.reshape([ROWS, KEYS // 16, 2, 4, 2]).permute((0, 1, 3, 2, 4))
    e0, e1 = x.split()
    a, c = e0.split()
    b, d = e1.split()
    return gl.inline_asm_elementwise(
        _ROUND_4, "=r,f,f,f,f", [a, b, c, d], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def _unpack_weights(w, ROWS: gl.constexpr, KEYS: gl.constexpr, WEIGHTS: gl.constexpr):
    """Name packed weights as an operand: no instructions, thanks to the order of the keys."""
    a = w.to(gl.int8)
    b = (w >> 8).to(gl.int8)
    c = (w >> 16).to(gl.int8)
    d = (w >> 24).to(gl.int8)
    x = gl.join(gl.join(a, c), gl.join(b, d))
    x = x.reshape([ROWS, KEYS]).to(gl.float8e4nv, bitcast=True)
    return gl.convert_layout(x, WEIGHTS, assert_trivial=True)


@gluon.jit
def _keep(x):
    """Use x without an instruction: a running product may read its registers until here.

    8-bit tensors cannot be named in a wait (triton 3.6 aborts).
    """
    return gl.inline_asm_elementwise("", "=r,0", [x], dtype=x.dtype, is_pure=False, pack=4)


@gluon.jit
def _tile_scale(k_scale_ptr, index_ptr, tile, count):
    """Scale of a tile of one box."""
    return gl.load(k_scale_ptr + gl.load(index_ptr + gl.minimum(tile, count - 1)))


@gluon.jit
def _scale_boxes(scores, k_scale_ptr, index_ptr, tile, count, BOXES: gl.constexpr,
                 LAYOUT: gl.constexpr):  # fmt: skip
    """Turn the int32 logits of a tile of several boxes into floats, each scaled with its box."""
    CHUNK: gl.constexpr = scores.shape[1] // BOXES
    columns = gl.arange(0, scores.shape[1], layout=gl.SliceLayout(0, LAYOUT))
    scale = gl.zeros([scores.shape[1]], gl.float32, gl.SliceLayout(0, LAYOUT))
    for box in gl.static_range(BOXES):
        slot = gl.minimum(tile * BOXES + box, count - 1)
        own = gl.load(k_scale_ptr + gl.load(index_ptr + slot))
        scale = gl.where(columns // CHUNK == box, own, scale)
    shifted = (scores + _MAGIC_BITS).to(gl.float32, bitcast=True)
    return (shifted - _MAGIC) * gl.expand_dims(scale, 0)


@gluon.jit
def _add_values(acc, product, decay, ACC_ROW: gl.constexpr):
    """Add one tile's product to the output, which decays first."""
    decay = gl.convert_layout(decay, ACC_ROW, assert_trivial=True)
    return acc * gl.expand_dims(decay, 1) + product


@gluon.jit
def _consumer(GROUP: gl.constexpr, o_desc, q_bufs, k_bufs, v_bufs, o_bufs, q_full, k_full, k_empty,
              v_full, v_empty, lse_ptr, q_scale_ptr, lse_shift_ptr, k_scale_ptr, v_scale_ptr,
              index_ptr, head, first_row, tiles, count, limit, seq_q,
              BOXES: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Attend 64 rows."""
    ROWS: gl.constexpr = q_bufs.shape[2]
    D: gl.constexpr = q_bufs.shape[3]
    TILE_KV: gl.constexpr = k_bufs.shape[2]
    WARPS: gl.constexpr = gl.num_warps()
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, TILE_KV, 32])  # fmt: skip
    ACC: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, D, 32])  # fmt: skip
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=ACC, k_width=4)
    SCORE_ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    ACC_ROW: gl.constexpr = gl.SliceLayout(1, ACC)

    q = q_bufs.index(GROUP).reshape([ROWS, D])
    acc = gl.zeros([ROWS, D], gl.float32, ACC)
    zero = gl.zeros([ROWS, D], gl.float32, ACC)
    no_scores = gl.zeros([ROWS, TILE_KV], gl.int32, SCORES)
    row_max = gl.full([ROWS], -float("inf"), gl.float32, SCORE_ROW)
    row_sum = gl.zeros([ROWS], gl.float32, SCORE_ROW)
    rows = first_row + GROUP * ROWS + gl.arange(0, ROWS, layout=SCORE_ROW)
    place = head.to(gl.int64) * seq_q + rows
    q_scale = gl.load(q_scale_ptr + place, mask=rows < seq_q, other=1.0)
    if tiles > 0:
        mbarrier.wait(q_full, 0)
        mbarrier.wait(k_full.index(0), 0)
        s = warpgroup_mma(q, keys_of(k_bufs, 0), no_scores, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(0), count=1)
        first = _scale_boxes(s, k_scale_ptr, index_ptr, tiles - 1, count, BOXES, SCORES)
        if limit < TILE_KV:
            column = gl.arange(0, TILE_KV, layout=gl.SliceLayout(0, SCORES))
            first = gl.where(gl.expand_dims(column, 0) < limit, first, -float("inf"))
        p, decay, row_max, row_sum = _softmax(first, row_max, row_sum, q_scale)
        packed = _pack_weights(p)
        k_stage = 1 if STAGES > 1 else 0
        k_phase = 0 if STAGES > 1 else 1
        v_stage = 0
        v_phase = 0
        if tiles > 1:
            mbarrier.wait(k_full.index(k_stage), k_phase)
        for done in range(1, tiles):
            s_next = warpgroup_mma(
                q, keys_of(k_bufs, k_stage), no_scores, use_acc=False, is_async=True
            )
            mbarrier.wait(v_full.index(v_stage), v_phase)
            p8 = _unpack_weights(packed, ROWS, TILE_KV, WEIGHTS)
            o = warpgroup_mma(p8, _values(v_bufs, v_stage), zero, use_acc=False, is_async=True)
            if BOXES == 1:
                scale = q_scale * _tile_scale(k_scale_ptr, index_ptr, tiles - 1 - done, count)
            s = warpgroup_mma_wait(1, deps=[s_next])
            mbarrier.arrive(k_empty.index(k_stage), count=1)
            last_decay = decay
            if BOXES == 1:
                p, decay, row_max, row_sum = _integer_softmax(s, row_max, row_sum, scale)
            else:
                scaled = _scale_boxes(
                    s, k_scale_ptr, index_ptr, tiles - 1 - done, count, BOXES, SCORES
                )
                p, decay, row_max, row_sum = _softmax(scaled, row_max, row_sum, q_scale)
            used_stage = v_stage
            v_stage = k_stage
            v_phase = k_phase
            k_stage, k_phase = advance(k_stage, k_phase, STAGES)
            # Ends the basic block: without it ptxas waits for values before the exponentials.
            if done + 1 < tiles:
                mbarrier.wait(k_full.index(k_stage), k_phase)
            o = warpgroup_mma_wait(0, deps=[o])
            _keep(p8)
            mbarrier.arrive(v_empty.index(used_stage), count=1)
            acc = _add_values(acc, o, last_decay, ACC_ROW)
            packed = _pack_weights(p)
        mbarrier.wait(v_full.index(v_stage), v_phase)
        p8 = _unpack_weights(packed, ROWS, TILE_KV, WEIGHTS)
        o = warpgroup_mma(p8, _values(v_bufs, v_stage), zero, use_acc=False, is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])
        _keep(p8)
        acc = _add_values(acc, o, decay, ACC_ROW)
    filled = row_sum > 0
    safe_sum = gl.where(filled, row_sum, 1.0)
    lse = (row_max - _SHIFT + gl.log2(safe_sum)) * 0.6931471805599453
    lse += gl.load(lse_shift_ptr + place, mask=rows < seq_q, other=0.0)
    gl.store(lse_ptr + place, gl.where(filled, lse, -float("inf")), mask=rows < seq_q)
    factor = gl.convert_layout(gl.load(v_scale_ptr + head) / safe_sum, ACC_ROW, assert_trivial=True)
    out = (acc * gl.expand_dims(factor, 1)).to(o_bufs.dtype)
    o_bufs.index(GROUP).reshape([ROWS, D]).store(out)
    fence_async_shared()
    tma.async_copy_shared_to_global(
        o_desc, [head, first_row + GROUP * ROWS, 0], o_bufs.index(GROUP)
    )
    tma.store_wait(0)


@gluon.jit
def attention_8bit_kernel(
    q_desc, k_desc, v_desc, o_desc, lse_ptr, q_scale_ptr, lse_shift_ptr, k_scale_ptr, v_scale_ptr,
    order_ptr, count_ptr, index_ptr,
    list_stride_h, seq_q, seq_kv, padded_kv, num_q_blocks, num_kv_blocks, tiles_per_block,
    TILE_KV: gl.constexpr, CHUNK: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    """One CTA computes GROUPS x 64 queries of one head."""
    ROWS: gl.constexpr = q_desc.block_type.shape[1]
    D: gl.constexpr = q_desc.block_type.shape[2]
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
        q_desc.dtype, [GROUPS, 1, ROWS, D], q_desc.layout)  # fmt: skip
    o_bufs = gl.allocate_shared_memory(
        o_desc.dtype, [GROUPS, 1, ROWS, D], o_desc.layout)  # fmt: skip
    k_bufs = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, TILE_KV, D], k_desc.layout)
    v_bufs = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 1, D, TILE_KV], v_desc.layout)
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
    # The tuples must be written out: constants are lost when they pass through a variable.
    if GROUPS == 1:
        gl.warp_specialize([
            (_consumer, (0, o_desc, q_bufs, k_bufs, v_bufs, o_bufs, q_full, k_full, k_empty, v_full, v_empty, lse_ptr, q_scale_ptr, lse_shift_ptr, k_scale_ptr, v_scale_ptr, index_ptr, head, first_row, tiles, count, limit, seq_q, BOXES, STAGES)),  # noqa: E501
            (_producer, (q_desc, k_desc, v_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, index_ptr, head, first_row, count, tiles, padded_kv, CHUNK, GROUPS, STAGES)),  # noqa: E501
        ], [1], [24])  # fmt: skip
    elif GROUPS == 2:
        gl.warp_specialize([
            (_consumer, (0, o_desc, q_bufs, k_bufs, v_bufs, o_bufs, q_full, k_full, k_empty, v_full, v_empty, lse_ptr, q_scale_ptr, lse_shift_ptr, k_scale_ptr, v_scale_ptr, index_ptr, head, first_row, tiles, count, limit, seq_q, BOXES, STAGES)),  # noqa: E501
            (_consumer, (1, o_desc, q_bufs, k_bufs, v_bufs, o_bufs, q_full, k_full, k_empty, v_full, v_empty, lse_ptr, q_scale_ptr, lse_shift_ptr, k_scale_ptr, v_scale_ptr, index_ptr, head, first_row, tiles, count, limit, seq_q, BOXES, STAGES)),  # noqa: E501
            (_producer, (q_desc, k_desc, v_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, index_ptr, head, first_row, count, tiles, padded_kv, CHUNK, GROUPS, STAGES)),  # noqa: E501
        ], [4, 1], [REGISTERS, 24])  # fmt: skip
