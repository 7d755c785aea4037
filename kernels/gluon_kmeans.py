"""Nearest centroids on Hopper: warp-specialised, one persistent CTA per multiprocessor.

Consumer warpgroups of 64 tokens each multiply them with one tile of centroids while they compare
the scores of the tile before, across tiles of centroids and of tokens. One producer warp streams
centroids and half norms, and the next tokens, through TMA.

A thread holds COLUMNS / 4 scores of a row. Which of them is the best is packed into the lowest bits
of the scores, 4 for 64 columns, 5 for 128: comparing takes no registers. Scores that agree to 2^-18
of what they exceed the row's best score of the first tile by count as equal; rounding centroids to
16 bits moves distances by far more. Among equals the lowest cluster wins.
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
    COLUMNS: gl.constexpr = c_desc.block_type.shape[1]
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
                c_desc, [head, step * COLUMNS, 0], c_full.index(stage), c_bufs.index(stage)
            )
            tma.async_copy_global_to_shared(
                half_desc, [head, step * COLUMNS], c_full.index(stage), half_bufs.index(stage)
            )
            stage, phase = _advance(stage, phase, STAGES)


@gluon.jit
def _thread_max(x):
    """Reduce each row to what its four threads hold of it, without a shuffle: (rows, 4)."""
    ROWS: gl.constexpr = x.shape[0]
    COLUMNS: gl.constexpr = x.shape[1]
    # Of 8 columns each thread holds two neighbours.
    x = x.reshape([ROWS, COLUMNS // 8, 4, 2]).permute((0, 2, 1, 3))
    return gl.max(x.reshape([ROWS, 4, COLUMNS // 4]), axis=2)


@gluon.jit
def _compare(score, half, floor, best, best_step, step, keep):
    """Fold one tile of products into the best packed score of each thread and its step.

    ``keep``, a mask of the bits above the tag, is no constant: two would take two operations.
    """
    COLUMNS: gl.constexpr = score.shape[1]
    TAGS: gl.constexpr = COLUMNS // 4
    # The nearest centroid has the largest x.c - |c|^2 / 2.
    score = score - gl.expand_dims(half, 0)
    if step == 0:
        floor = gl.max(score, axis=1)
    # The best of a row does not lie below its floor: what can win compares as an integer.
    bits = (score - gl.expand_dims(floor, 1)).to(gl.int32, bitcast=True)
    column = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, score.type.layout))
    # The lowest column has the highest tag.
    tag = TAGS - 1 - (column // 8 * 2 + column % 2)
    top = _thread_max((bits & keep) | gl.expand_dims(tag, 0))
    # Strictly better, tags aside: among equals the lowest tile stays.
    better = top > (best | (TAGS - 1))
    return floor, gl.where(better, top, best), gl.where(better, step, best_step)


@gluon.jit
def _settle(steps):
    """Return steps as they are, known before the next barrier.

    Without a store, which is never done, ptxas moves the comparison behind the wait for the product
    that should run beside it.
    """
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; .reg .b32 t; or.b32 t, $2, $3; setp.lt.s32 p, t, 0;"
        " @p st.shared.b32 [t], t; mov.b32 $0, $2; mov.b32 $1, $3; }",
        "=r,=r,r,r", [steps], dtype=gl.int32, is_pure=False, pack=2,
    )  # fmt: skip


@gluon.jit
def _store_labels(labels_ptr, best, best_step, row, end, K, COLUMNS: gl.constexpr):
    """Compare the four threads of each row and write its label."""
    TAGS: gl.constexpr = COLUMNS // 4
    score = best & -TAGS
    place = TAGS - 1 - (best & (TAGS - 1))
    thread = gl.arange(0, 4, layout=gl.SliceLayout(0, best.type.layout))
    label = best_step * COLUMNS + place // 2 * 8 + place % 2 + gl.expand_dims(thread * 2, 0)
    wins = score == gl.expand_dims(gl.max(score, axis=1), 1)
    # Among equal threads the lowest cluster wins. NaN stays in range.
    label = gl.minimum(gl.min(gl.where(wins, label, K - 1), axis=1), K - 1)
    rows = row + gl.arange(0, best.shape[0], layout=gl.SliceLayout(1, best.type.layout))
    gl.store(labels_ptr + rows, label, mask=rows < end)


@gluon.jit
def _following(at, steps, STAGES: gl.constexpr):
    """Return the step, slot of tokens and stage of centroids of the next product."""
    step, slot, slot_phase, stage, phase = at
    step += 1
    if step == steps:
        step = 0
        slot, slot_phase = _advance(slot, slot_phase, 2)
    stage, phase = _advance(stage, phase, STAGES)
    return step, slot, slot_phase, stage, phase


@gluon.jit
def _wait(at, x_full, c_full):
    """Wait for what a product reads."""
    step, slot, slot_phase, stage, phase = at
    if step == 0:
        mbarrier.wait(x_full.index(slot), slot_phase)
    mbarrier.wait(c_full.index(stage), phase)


@gluon.jit
def _multiply(at, x_bufs, c_bufs, SCORES: gl.constexpr, GROUP: gl.constexpr,
              GROUPS: gl.constexpr):  # fmt: skip
    """Start one product."""
    _, slot, _, stage, _ = at
    ROWS: gl.constexpr = x_bufs.shape[2]
    COLUMNS: gl.constexpr = c_bufs.shape[2]
    D: gl.constexpr = x_bufs.shape[3]
    x = x_bufs.index(slot * GROUPS + GROUP).reshape([ROWS, D])
    zero = gl.zeros([ROWS, COLUMNS], gl.float32, SCORES)
    return warpgroup_mma(x, _keys(c_bufs, stage), zero, use_acc=False, is_async=True)


@gluon.jit
def _turn(scores, at, ahead, floor, best, best_step, tile, left, nothing, x_bufs, c_bufs,
          half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, last_tile, tiles_per_head,
          steps, S, K, keep, SCORES: gl.constexpr, GROUP: gl.constexpr, GROUPS: gl.constexpr,
          STAGES: gl.constexpr):  # fmt: skip
    """Take the product ``at`` and start the one ``ahead``; ``left`` products are not yet taken."""
    ROWS: gl.constexpr = x_bufs.shape[2]
    COLUMNS: gl.constexpr = c_bufs.shape[2]
    step, slot, _, stage, _ = at
    # One product at a time: ptxas waits after each of its parts if two are in flight here.
    scores = warpgroup_mma_wait(0, deps=[scores])
    scores_ahead = _multiply(ahead, x_bufs, c_bufs, SCORES, GROUP, GROUPS)
    half = half_bufs.index(stage).reshape([COLUMNS]).load(gl.SliceLayout(0, SCORES))
    mbarrier.arrive(c_empty.index(stage), count=1)
    floor, best, best_step = _compare(scores, half, floor, best, best_step, step, keep)
    best_step = _settle(best_step)
    if step == steps - 1:
        mbarrier.arrive(x_empty.index(slot), count=1)
        head = tile // tiles_per_head
        row = (tile - head * tiles_per_head) * (GROUPS * ROWS) + GROUP * ROWS
        # After the last tile comes a product of what lies in the buffers.
        end = gl.where(tile < last_tile, S, 0)
        _store_labels(labels_ptr + head.to(gl.int64) * S, best, best_step, row, end, K, COLUMNS)
        best = nothing
        tile += 1
    at = ahead
    ahead = _following(ahead, steps, STAGES)
    if left > 2:
        _wait(ahead, x_full, c_full)
    return scores_ahead, at, ahead, floor, best, best_step, tile


@gluon.jit
def _consumer(GROUP: gl.constexpr, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty,
              labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, keep,
              GROUPS: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Label 64 tokens of each tile."""
    ROWS: gl.constexpr = x_bufs.shape[2]
    COLUMNS: gl.constexpr = c_bufs.shape[2]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[gl.num_warps(), 1], instr_shape=[16, COLUMNS, 16]
    )
    nothing = _thread_max(gl.full([ROWS, COLUMNS], -(2**31), gl.int32, SCORES))
    best = nothing
    best_step = nothing * 0
    floor = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    tile = first_tile
    products = gl.maximum(last_tile - first_tile, 0) * steps
    if products > 0:
        at = (0, 0, 0, 0, 0)
        _wait(at, x_full, c_full)
        even = _multiply(at, x_bufs, c_bufs, SCORES, GROUP, GROUPS)
        ahead = _following(at, steps, STAGES)
        if products > 1:
            _wait(ahead, x_full, c_full)
        # Two products a turn: their scores then stay in registers of their own.
        for left in range(products, 0, -2):
            odd, at, ahead, floor, best, best_step, tile = _turn(
                even, at, ahead, floor, best, best_step, tile, left, nothing, x_bufs, c_bufs,
                half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, last_tile, tiles_per_head,
                steps, S, K, keep, SCORES, GROUP, GROUPS, STAGES,
            )  # fmt: skip
            even, at, ahead, floor, best, best_step, tile = _turn(
                odd, at, ahead, floor, best, best_step, tile, left - 1, nothing, x_bufs, c_bufs,
                half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, last_tile, tiles_per_head,
                steps, S, K, keep, SCORES, GROUP, GROUPS, STAGES,
            )  # fmt: skip
        warpgroup_mma_wait(0, deps=[even])


# Lengths serve loops and comparisons: compiled once, not once per divisor.
@gluon.jit(do_not_specialize=["S", "K", "tiles_per_head", "tiles", "steps"])
def assign_kernel(
    x_desc, c_desc, half_desc, labels_ptr, S, K, tiles_per_head, tiles, steps, keep,
    GROUPS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """One CTA labels a run of tiles of GROUPS x 64 tokens."""
    ROWS: gl.constexpr = x_desc.block_type.shape[1]
    D: gl.constexpr = x_desc.block_type.shape[2]
    COLUMNS: gl.constexpr = c_desc.block_type.shape[1]
    share = (tiles + gl.num_programs(0) - 1) // gl.num_programs(0)
    first_tile = gl.program_id(0) * share
    last_tile = gl.minimum(first_tile + share, tiles)
    x_bufs = gl.allocate_shared_memory(x_desc.dtype, [2 * GROUPS, 1, ROWS, D], x_desc.layout)
    c_bufs = gl.allocate_shared_memory(c_desc.dtype, [STAGES, 1, COLUMNS, D], c_desc.layout)
    half_bufs = gl.allocate_shared_memory(gl.float32, [STAGES, 1, COLUMNS], half_desc.layout)
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
            (_consumer, (0, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, keep, GROUPS, STAGES)),  # noqa: E501
            (_consumer, (1, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, keep, GROUPS, STAGES)),  # noqa: E501
            (_producer, (x_desc, c_desc, half_desc, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, first_tile, last_tile, tiles_per_head, steps, GROUPS, STAGES)),  # noqa: E501
        ], [4, 1], [REGISTERS, 24])  # fmt: skip
    else:
        gl.warp_specialize([
            (_consumer, (0, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, keep, GROUPS, STAGES)),  # noqa: E501
            (_consumer, (1, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, keep, GROUPS, STAGES)),  # noqa: E501
            (_consumer, (2, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, keep, GROUPS, STAGES)),  # noqa: E501
            (_producer, (x_desc, c_desc, half_desc, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, first_tile, last_tile, tiles_per_head, steps, GROUPS, STAGES)),  # noqa: E501
        ], [4, 4, 1], [REGISTERS, REGISTERS, 24])  # fmt: skip
