"""Nearest centroids on Hopper: warp-specialised, one persistent CTA per multiprocessor.

Consumer warpgroups of 64 tokens each keep, for every column of a tile of centroids, the best
score so far and the tile it came from; columns are compared with one another only once all tiles
have passed. One producer warp streams centroids and half norms, and the next tokens, through TMA.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from vidsparse.kernels.gluon_attention import _advance, _keys


@gluon.jit
def _producer(x_desc, c_desc, half_desc, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full,
              c_empty, first_tile, last_tile, tiles_per_head, steps, GROUPS: gl.constexpr,
              STAGES: gl.constexpr):  # fmt: skip
    ROWS: gl.constexpr = x_desc.block_type.shape[1]
    CLUSTERS: gl.constexpr = c_desc.block_type.shape[1]
    slot = 0
    # Waiting for the phase before the first one passes at once.
    slot_phase = 1
    stage = 0
    phase = 1
    for tile in range(first_tile, last_tile):
        head = tile // tiles_per_head
        row = (tile - head * tiles_per_head) * (GROUPS * ROWS)
        mbarrier.wait(x_empty.index(slot), slot_phase)
        mbarrier.expect(x_full.index(slot), GROUPS * x_desc.block_type.nbytes)
        for group in gl.static_range(GROUPS):
            tma.async_copy_global_to_shared(
                x_desc, [head, row + group * ROWS, 0], x_full.index(slot),
                x_bufs.index(slot * GROUPS + group),
            )  # fmt: skip
        slot, slot_phase = _advance(slot, slot_phase, 2)
        for step in range(0, steps):
            mbarrier.wait(c_empty.index(stage), phase)
            mbarrier.expect(
                c_full.index(stage), c_desc.block_type.nbytes + half_desc.block_type.nbytes
            )
            tma.async_copy_global_to_shared(
                c_desc, [head, step * CLUSTERS, 0], c_full.index(stage), c_bufs.index(stage)
            )
            tma.async_copy_global_to_shared(
                half_desc, [head, step * CLUSTERS], c_full.index(stage), half_bufs.index(stage)
            )
            stage, phase = _advance(stage, phase, STAGES)


@gluon.jit
def _consumer(GROUP: gl.constexpr, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty,
              labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K,
              GROUPS: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Label 64 tokens of each tile."""
    ROWS: gl.constexpr = x_bufs.shape[2]
    D: gl.constexpr = x_bufs.shape[3]
    CLUSTERS: gl.constexpr = c_bufs.shape[2]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[gl.num_warps(), 1],
        instr_shape=[16, CLUSTERS, 16])  # fmt: skip
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    COLUMN: gl.constexpr = gl.SliceLayout(0, SCORES)
    columns = gl.expand_dims(gl.arange(0, CLUSTERS, layout=COLUMN), 0)
    zero = gl.zeros([ROWS, CLUSTERS], gl.float32, SCORES)
    slot = 0
    slot_phase = 0
    stage = 0
    phase = 0
    for tile in range(first_tile, last_tile):
        best = gl.full([ROWS, CLUSTERS], -float("inf"), gl.float32, SCORES)
        start = gl.zeros([ROWS, CLUSTERS], gl.int32, SCORES)
        mbarrier.wait(x_full.index(slot), slot_phase)
        x = x_bufs.index(slot * GROUPS + GROUP).reshape([ROWS, D])
        for step in range(0, steps):
            mbarrier.wait(c_full.index(stage), phase)
            score = warpgroup_mma(x, _keys(c_bufs, stage), zero, use_acc=False, is_async=True)
            half = half_bufs.index(stage).reshape([CLUSTERS]).load(COLUMN)
            score = warpgroup_mma_wait(0, deps=[score])
            mbarrier.arrive(c_empty.index(stage), count=1)
            # The nearest centroid has the largest x.c - |c|^2 / 2.
            score = score - gl.expand_dims(half, 0)
            # Strictly better: among equals the lowest tile stays.
            start = gl.where(score > best, step * CLUSTERS, start)
            best = gl.maximum(best, score)
            stage, phase = _advance(stage, phase, STAGES)
        mbarrier.arrive(x_empty.index(slot), count=1)
        slot, slot_phase = _advance(slot, slot_phase, 2)
        top = gl.expand_dims(gl.max(best, axis=1), 1)
        # Among equal columns the lowest cluster wins. NaN stays in range.
        label = gl.min(gl.where(best == top, start + columns, K - 1), axis=1)
        head = tile // tiles_per_head
        rows = (tile - head * tiles_per_head) * (GROUPS * ROWS) + GROUP * ROWS
        rows += gl.arange(0, ROWS, layout=ROW)
        gl.store(labels_ptr + head.to(gl.int64) * S + rows, gl.minimum(label, K - 1), mask=rows < S)


@gluon.jit
def assign_kernel(
    x_desc, c_desc, half_desc, labels_ptr, S, K, tiles_per_head, tiles, steps,
    GROUPS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """One CTA labels a run of tiles of GROUPS x 64 tokens."""
    ROWS: gl.constexpr = x_desc.block_type.shape[1]
    D: gl.constexpr = x_desc.block_type.shape[2]
    CLUSTERS: gl.constexpr = c_desc.block_type.shape[1]
    share = (tiles + gl.num_programs(0) - 1) // gl.num_programs(0)
    first_tile = gl.program_id(0) * share
    last_tile = gl.minimum(first_tile + share, tiles)
    x_bufs = gl.allocate_shared_memory(x_desc.dtype, [2 * GROUPS, 1, ROWS, D], x_desc.layout)
    c_bufs = gl.allocate_shared_memory(c_desc.dtype, [STAGES, 1, CLUSTERS, D], c_desc.layout)
    half_bufs = gl.allocate_shared_memory(gl.float32, [STAGES, 1, CLUSTERS], half_desc.layout)
    x_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    x_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    c_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    c_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(x_full.index(i), count=1)
        mbarrier.init(x_empty.index(i), count=GROUPS)
    for i in gl.static_range(STAGES):
        mbarrier.init(c_full.index(i), count=1)
        mbarrier.init(c_empty.index(i), count=GROUPS)
    # The tuples must be written out: constants are lost when they pass through a variable.
    if GROUPS == 2:
        gl.warp_specialize([
            (_consumer, (0, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, GROUPS, STAGES)),  # noqa: E501
            (_consumer, (1, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, GROUPS, STAGES)),  # noqa: E501
            (_producer, (x_desc, c_desc, half_desc, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, first_tile, last_tile, tiles_per_head, steps, GROUPS, STAGES)),  # noqa: E501
        ], [4, 1], [REGISTERS, 24])  # fmt: skip
    else:
        gl.warp_specialize([
            (_consumer, (0, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, GROUPS, STAGES)),  # noqa: E501
            (_consumer, (1, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, GROUPS, STAGES)),  # noqa: E501
            (_consumer, (2, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, GROUPS, STAGES)),  # noqa: E501
            (_producer, (x_desc, c_desc, half_desc, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, first_tile, last_tile, tiles_per_head, steps, GROUPS, STAGES)),  # noqa: E501
        ], [4, 4, 1], [REGISTERS, REGISTERS, 24])  # fmt: skip
