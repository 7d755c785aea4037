"""Block mass on Hopper: warp-specialised, the first half of ``gluon_attention``.

One CTA weighs one query tile, ``GROUPS`` consumer warpgroups of 64 rows each, against all keys; one
producer warp fills a ring of K tiles through TMA. A warpgroup has the product of the next tile in
flight while it takes the exponentials of the one before. Each warp keeps its own sum of each part
of a tile, 16 rows high, so that no warp waits for another; ``triton_mass_parts`` joins them.

Keys are walked from their end: the partial last tile comes first and is the only one masked.
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

from vidsparse.kernels.gluon_rings import advance, keys_of
from vidsparse.kernels.gluon_softmax import mixed_exp2


@gluon.jit
def _producer(q_desc, k_desc, q_bufs, k_bufs, q_full, k_full, k_empty, head, first_row, tiles,
              GROUPS: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    ROWS: gl.constexpr = q_desc.block_type.shape[1]
    TILE_KV: gl.constexpr = k_desc.block_type.shape[1]
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
        mbarrier.wait(k_empty.index(stage), phase)
        mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(
            k_desc, [head, (tiles - 1 - done) * TILE_KV, 0], k_full.index(stage),
            k_bufs.index(stage),
        )  # fmt: skip
        stage, phase = advance(stage, phase, STAGES)


@gluon.jit
def _row_reference(lse_ptr, rows, seq_q):
    """Load the base-2 LSE of rows; those outside and those without keys weigh nothing."""
    lse = gl.load(lse_ptr + rows, mask=rows < seq_q, other=float("inf"))
    return gl.where(lse == -float("inf"), float("inf"), lse) * 1.4426950408889634


@gluon.jit
def _store_mass(parts_ptr, tile, scores, reference, scale,
                GROUP: gl.constexpr, GROUPS: gl.constexpr, PART_KV: gl.constexpr,
                CUBIC_SHARE: gl.constexpr):  # fmt: skip
    """Sum the weights of each part of a tile within each warp."""
    WARPS: gl.constexpr = gl.num_warps()
    PARTS: gl.constexpr = scores.shape[1] // PART_KV
    weights = mixed_exp2(scores * scale - gl.expand_dims(reference, 1), CUBIC_SHARE)
    # A thread holds 2 rows of its warp's 16 and 2 of every 8 columns. Its registers come last, so
    # that their sum needs no shuffle.
    weights = gl.reshape(weights, [WARPS, 2, 8, PARTS, PART_KV // 8, 4, 2])
    weights = gl.permute(weights, (0, 3, 2, 5, 1, 4, 6))
    weights = gl.reshape(weights, [WARPS, PARTS, 32, PART_KV // 2])
    mass = gl.sum(gl.sum(weights, axis=3), axis=2)
    WARP: gl.constexpr = gl.SliceLayout(1, mass.type.layout)
    PART: gl.constexpr = gl.SliceLayout(0, mass.type.layout)
    warps = gl.expand_dims(gl.arange(0, WARPS, layout=WARP), 1)
    parts = gl.expand_dims(tile * PARTS + gl.arange(0, PARTS, layout=PART), 0)
    gl.store(parts_ptr + (parts * GROUPS + GROUP) * WARPS + warps, mass)


@gluon.jit
def _next_scores(q, scores, zero, k_bufs, k_full, k_empty, stage, phase, more, parts_ptr, tile,
                 reference, scale, GROUP: gl.constexpr, GROUPS: gl.constexpr,
                 STAGES: gl.constexpr, PART_KV: gl.constexpr,
                 CUBIC_SHARE: gl.constexpr):  # fmt: skip
    """Multiply with the tile that lies in ``stage`` while the scores before it are weighed."""
    ahead = warpgroup_mma(q, keys_of(k_bufs, stage), zero, use_acc=False, is_async=True)
    _store_mass(parts_ptr, tile, scores, reference, scale, GROUP, GROUPS, PART_KV, CUBIC_SHARE)
    used = stage
    stage, phase = advance(stage, phase, STAGES)
    # Here, not at the top: the spin loop ends the basic block, without it ptxas may hoist the
    # product's wait above the exponentials.
    if more:
        mbarrier.wait(k_full.index(stage), phase)
    ahead = warpgroup_mma_wait(0, deps=[ahead])
    mbarrier.arrive(k_empty.index(used), count=1)
    return ahead, stage, phase


@gluon.jit
def _consumer(GROUP: gl.constexpr, q_bufs, k_bufs, q_full, k_full, k_empty, lse_ptr, parts_ptr,
              first_row, tiles, limit, scale, seq_q, GROUPS: gl.constexpr, STAGES: gl.constexpr,
              PART_KV: gl.constexpr, CUBIC_SHARE: gl.constexpr):  # fmt: skip
    """Weigh 64 rows against all keys."""
    ROWS: gl.constexpr = q_bufs.shape[2]
    D: gl.constexpr = q_bufs.shape[3]
    TILE_KV: gl.constexpr = k_bufs.shape[2]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[gl.num_warps(), 1],
        instr_shape=[16, TILE_KV, 16])  # fmt: skip
    if tiles > 0:
        rows = first_row + GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
        reference = _row_reference(lse_ptr, rows, seq_q)
        q = q_bufs.index(GROUP).reshape([ROWS, D])
        zero = gl.zeros([ROWS, TILE_KV], gl.float32, SCORES)
        mbarrier.wait(q_full, 0)
        mbarrier.wait(k_full.index(0), 0)
        even = warpgroup_mma(q, keys_of(k_bufs, 0), zero, use_acc=False, is_async=True)
        even = warpgroup_mma_wait(0, deps=[even])
        mbarrier.arrive(k_empty.index(0), count=1)
        if limit < TILE_KV:
            column = gl.arange(0, TILE_KV, layout=gl.SliceLayout(0, SCORES))
            even = gl.where(gl.expand_dims(column, 0) < limit, even, -float("inf"))
        stage = 1
        phase = 0
        if tiles > 1:
            mbarrier.wait(k_full.index(stage), phase)
        # Two tiles a turn: their scores then stay in registers of their own.
        for tile in range(tiles - 1, 1, -2):
            odd, stage, phase = _next_scores(
                q, even, zero, k_bufs, k_full, k_empty, stage, phase, True, parts_ptr, tile,
                reference, scale, GROUP, GROUPS, STAGES, PART_KV, CUBIC_SHARE,
            )  # fmt: skip
            even, stage, phase = _next_scores(
                q, odd, zero, k_bufs, k_full, k_empty, stage, phase, tile > 2, parts_ptr, tile - 1,
                reference, scale, GROUP, GROUPS, STAGES, PART_KV, CUBIC_SHARE,
            )  # fmt: skip
        if tiles % 2 == 0:
            even, stage, phase = _next_scores(
                q, even, zero, k_bufs, k_full, k_empty, stage, phase, False, parts_ptr, 1,
                reference, scale, GROUP, GROUPS, STAGES, PART_KV, CUBIC_SHARE,
            )  # fmt: skip
        _store_mass(parts_ptr, 0, even, reference, scale, GROUP, GROUPS, PART_KV, CUBIC_SHARE)


@gluon.jit
def _any_wanted(only_ptr, first_row, rows, block_q, num_q_blocks):
    """Tell whether one of the query blocks that these rows lie in is flagged."""
    first = first_row // block_q
    last = gl.minimum((first_row + rows - 1) // block_q, num_q_blocks - 1)
    wanted = gl.to_tensor(0)
    for block in range(first, last + 1):
        wanted |= gl.load(only_ptr + block).to(gl.int32)
    return wanted != 0


# Lengths and pointers serve addresses of single numbers: compiled once, not once per divisor.
@gluon.jit(
    do_not_specialize=["seq_q", "seq_kv", "tiles_per_head", "block_q", "num_q_blocks"],
    do_not_specialize_on_alignment=["lse_ptr", "parts_ptr", "only_ptr"],
)
def mass_kernel(
    q_desc, k_desc, lse_ptr, parts_ptr, only_ptr, scale, seq_q, seq_kv, tiles_per_head, block_q,
    num_q_blocks,
    PART_KV: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
    CUBIC_SHARE: gl.constexpr, ONLY: gl.constexpr,
):  # fmt: skip
    """One CTA weighs GROUPS x 64 queries of one head against all of its keys."""
    ROWS: gl.constexpr = q_desc.block_type.shape[1]
    D: gl.constexpr = q_desc.block_type.shape[2]
    TILE_KV: gl.constexpr = k_desc.block_type.shape[1]
    head = gl.program_id(0) // tiles_per_head
    q_tile = gl.program_id(0) - head * tiles_per_head
    first_row = q_tile * (ROWS * GROUPS)
    tiles = (seq_kv + TILE_KV - 1) // TILE_KV
    limit = seq_kv - (tiles - 1) * TILE_KV
    lse_ptr += head.to(gl.int64) * seq_q
    parts_ptr += gl.program_id(0).to(gl.int64) * (tiles * (TILE_KV // PART_KV) * GROUPS * 4)
    if ONLY:
        only_ptr += head.to(gl.int64) * num_q_blocks
        wanted = _any_wanted(only_ptr, first_row, ROWS * GROUPS, block_q, num_q_blocks)
        tiles = gl.where(wanted, tiles, 0)

    q_bufs = gl.allocate_shared_memory(q_desc.dtype, [GROUPS, 1, ROWS, D], q_desc.layout)
    k_bufs = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, TILE_KV, D], k_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=GROUPS)
    # The tuples must be written out: constants are lost when they pass through a variable.
    if GROUPS == 2:
        gl.warp_specialize([
            (_consumer, (0, q_bufs, k_bufs, q_full, k_full, k_empty, lse_ptr, parts_ptr, first_row, tiles, limit, scale, seq_q, GROUPS, STAGES, PART_KV, CUBIC_SHARE)),  # noqa: E501
            (_consumer, (1, q_bufs, k_bufs, q_full, k_full, k_empty, lse_ptr, parts_ptr, first_row, tiles, limit, scale, seq_q, GROUPS, STAGES, PART_KV, CUBIC_SHARE)),  # noqa: E501
            (_producer, (q_desc, k_desc, q_bufs, k_bufs, q_full, k_full, k_empty, head, first_row, tiles, GROUPS, STAGES)),  # noqa: E501
        ], [4, 1], [REGISTERS, 24])  # fmt: skip
    else:
        gl.warp_specialize([
            (_consumer, (0, q_bufs, k_bufs, q_full, k_full, k_empty, lse_ptr, parts_ptr, first_row, tiles, limit, scale, seq_q, GROUPS, STAGES, PART_KV, CUBIC_SHARE)),  # noqa: E501
            (_consumer, (1, q_bufs, k_bufs, q_full, k_full, k_empty, lse_ptr, parts_ptr, first_row, tiles, limit, scale, seq_q, GROUPS, STAGES, PART_KV, CUBIC_SHARE)),  # noqa: E501
            (_consumer, (2, q_bufs, k_bufs, q_full, k_full, k_empty, lse_ptr, parts_ptr, first_row, tiles, limit, scale, seq_q, GROUPS, STAGES, PART_KV, CUBIC_SHARE)),  # noqa: E501
            (_producer, (q_desc, k_desc, q_bufs, k_bufs, q_full, k_full, k_empty, head, first_row, tiles, GROUPS, STAGES)),  # noqa: E501
        ], [4, 4, 1], [REGISTERS, REGISTERS, 24])  # fmt: skip
