"""Warp-specialised attention for Hopper over variable key blocks: lists of wide tiles and chunks.

A query tile lies within one query block. Its keys come as chunks (first the partial ones, whose
tiles are masked, then whole ones) and as wide tiles of consecutive keys, one box each. Small boxes
keep a warp busy: one issues the copies of keys, another those of values.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from vidsparse.kernels.gluon_attention import attend_rows
from vidsparse.kernels.gluon_rings import advance, load_boxes, prefetch


@gluon.jit
def _entry_rows(entries_ptr, tile, count, seq, BOXES: gl.constexpr):
    """First key rows of the boxes of one tile of chunks."""
    rows = ()
    for box in gl.static_range(BOXES):
        slot = tile * BOXES + box
        row = gl.load(entries_ptr + gl.minimum(slot, count - 1)) >> 8
        rows = rows + (gl.where(slot < count, row, seq),)  # noqa: RUF005
    return rows


@gluon.jit
def _fill(chunks, wide, means, bufs, full, empty, entries_ptr, wide_ptr, head, count, tiles,
          mean_tiles, seq_kv, STAGES: gl.constexpr, MEANS: gl.constexpr):  # fmt: skip
    """Fill one ring, of keys or of values, with all tiles of a query tile."""
    BOXES: gl.constexpr = bufs.shape[2] // chunks.block_type.shape[1]
    stage = 0
    phase = 1
    chunk_tiles = gl.minimum((count + BOXES - 1) // BOXES, tiles)
    for done in range(0, chunk_tiles):
        rows = _entry_rows(entries_ptr, chunk_tiles - 1 - done, count, seq_kv, BOXES)
        mbarrier.wait(empty.index(stage), phase)
        load_boxes(chunks, full, bufs, stage, head, rows)
        stage, phase = advance(stage, phase, STAGES)
    for done in range(0, tiles - chunk_tiles):
        row = gl.load(wide_ptr + tiles - chunk_tiles - 1 - done)
        mbarrier.wait(empty.index(stage), phase)
        load_boxes(wide, full, bufs, stage, head, (row,))
        stage, phase = advance(stage, phase, STAGES)
    if MEANS:
        for tile in range(0, mean_tiles):
            mbarrier.wait(empty.index(stage), phase)
            load_boxes(means, full, bufs, stage, head, (tile * bufs.shape[2],))
            stage, phase = advance(stage, phase, STAGES)


@gluon.jit
def _load_keys(q_desc, k_desc, k_wide, k_mean, q_bufs, k_bufs, q_full, k_full, k_empty, entries_ptr,
               wide_ptr, head, first_row, count, tiles, mean_tiles, seq_kv, bias_ptr,
               GROUPS: gl.constexpr, STAGES: gl.constexpr, MEANS: gl.constexpr):  # fmt: skip
    ROWS: gl.constexpr = q_desc.block_type.shape[1]
    if tiles + mean_tiles > 0:
        mbarrier.expect(q_full, GROUPS * q_desc.block_type.nbytes)
        for group in gl.static_range(GROUPS):
            tma.async_copy_global_to_shared(
                q_desc, [head, first_row + group * ROWS, 0], q_full, q_bufs.index(group)
            )
        if MEANS:
            prefetch(bias_ptr, mean_tiles * k_bufs.shape[2])
    _fill(k_desc, k_wide, k_mean, k_bufs, k_full, k_empty, entries_ptr, wide_ptr, head, count,
          tiles, mean_tiles, seq_kv, STAGES, MEANS)  # fmt: skip


@gluon.jit
def _load_values(v_desc, v_wide, v_mean, v_bufs, v_full, v_empty, entries_ptr, wide_ptr, head,
                 count, tiles, mean_tiles, seq_kv, STAGES: gl.constexpr,
                 MEANS: gl.constexpr):  # fmt: skip
    _fill(v_desc, v_wide, v_mean, v_bufs, v_full, v_empty, entries_ptr, wide_ptr, head, count,
          tiles, mean_tiles, seq_kv, STAGES, MEANS)  # fmt: skip


@gluon.jit
def ragged_attention_kernel(
    q_desc, k_desc, v_desc, k_wide, v_wide, out_ptr, lse_ptr, block_ptr, first_ptr, end_ptr,
    num_wide_ptr, num_full_ptr, num_chunks_ptr, wide_ptr, entries_ptr, lengths_ptr,
    k_mean, v_mean, bias_ptr, num_means_ptr, padded_means,
    out_stride_h, out_stride_s, wide_capacity, capacity, num_q_blocks, tiles_per_head,
    scale, seq_q, seq_kv, head_size,
    GROUPS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
    CUBIC_SHARE: gl.constexpr, MEANS: gl.constexpr, FIXED: gl.constexpr,
):  # fmt: skip
    """One CTA computes up to GROUPS x 64 queries of one query block of one head."""
    ROWS: gl.constexpr = q_desc.block_type.shape[1]
    D: gl.constexpr = q_desc.block_type.shape[2]
    TILE_KV: gl.constexpr = k_wide.block_type.shape[1]
    BOXES: gl.constexpr = TILE_KV // k_desc.block_type.shape[1]
    item = gl.program_id(0)
    head = item // tiles_per_head
    first_row = gl.load(first_ptr + item)
    end_row = gl.minimum(gl.load(end_ptr + item), seq_q)
    lists = (head * num_q_blocks + gl.load(block_ptr + item)).to(gl.int64)
    wide_ptr += lists * wide_capacity
    entries_ptr += lists * capacity
    # One integer has the lengths of all boxes of a tile.
    lengths_ptr += lists * (capacity // BOXES)
    num_wide = gl.load(num_wide_ptr + lists)
    count = gl.load(num_chunks_ptr + lists)
    chunk_tiles = (count + BOXES - 1) // BOXES
    masked = chunk_tiles - gl.load(num_full_ptr + lists) // BOXES
    # Items without rows only fill up the grid.
    tiles = gl.where(first_row < end_row, num_wide + chunk_tiles, 0)
    mean_tiles = 0
    if MEANS:
        mean_tiles = (gl.load(num_means_ptr + lists) + TILE_KV - 1) // TILE_KV
        mean_tiles = gl.where(first_row < end_row, mean_tiles, 0)
        bias_ptr += lists * padded_means

    q_bufs = gl.allocate_shared_memory(
        q_desc.dtype, [GROUPS, 1, ROWS, D], q_desc.layout)  # fmt: skip
    k_bufs = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, TILE_KV, D], k_wide.layout)
    v_bufs = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 1, TILE_KV, D], v_wide.layout)
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
    gl.static_assert(GROUPS == 2)
    gl.warp_specialize([
        (attend_rows, (0, out_ptr, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, q_full, lse_ptr, head, first_row, tiles, mean_tiles, bias_ptr, 0, scale, seq_q, lengths_ptr, count, masked, end_row, out_stride_h, out_stride_s, head_size, 0, 0, 0, lse_ptr, lse_ptr, BOXES, GROUPS, STAGES, False, True, CUBIC_SHARE, False, MEANS, FIXED, False)),  # noqa: E501
        (attend_rows, (1, out_ptr, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, q_full, lse_ptr, head, first_row, tiles, mean_tiles, bias_ptr, 0, scale, seq_q, lengths_ptr, count, masked, end_row, out_stride_h, out_stride_s, head_size, 0, 0, 0, lse_ptr, lse_ptr, BOXES, GROUPS, STAGES, False, True, CUBIC_SHARE, False, MEANS, FIXED, False)),  # noqa: E501
        (_load_keys, (q_desc, k_desc, k_wide, k_mean, q_bufs, k_bufs, q_full, k_full, k_empty, entries_ptr, wide_ptr, head, first_row, count, tiles, mean_tiles, seq_kv, bias_ptr, GROUPS, STAGES, MEANS)),  # noqa: E501
        (_load_values, (v_desc, v_wide, v_mean, v_bufs, v_full, v_empty, entries_ptr, wide_ptr, head, count, tiles, mean_tiles, seq_kv, STAGES, MEANS)),  # noqa: E501
    ], [4, 1, 1], [REGISTERS, 24, 24])  # fmt: skip
