"""Nearest centroids on Hopper: warp-specialised, one persistent CTA per multiprocessor.

Each of two consumer warpgroups labels 128 tokens, held in registers as two halves of 64. While the
scores of one half are compared, the products of the other half run, across tiles of centroids and
of tokens. One producer warp streams centroids and half norms, and the next tokens, through TMA.

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

from vidsparse.kernels.gluon_rings import advance, keys_of
from vidsparse.kernels.gluon_softmax import unpack_weights


@gluon.jit
def _producer(x_desc, c_desc, half_desc, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full,
              c_empty, first_tile, last_tile, tiles_per_head, steps,
              STAGES: gl.constexpr):  # fmt: skip
    BOXES: gl.constexpr = x_bufs.shape[0]
    ROWS: gl.constexpr = x_desc.block_type.shape[1]
    COLUMNS: gl.constexpr = c_desc.block_type.shape[1]
    stage = 0
    # Waiting for the phase before the first one passes at once.
    phase = 1
    x_phase = 1
    for tile in range(first_tile, last_tile):
        head = tile // tiles_per_head
        row = (tile - head * tiles_per_head) * (BOXES * ROWS)
        mbarrier.wait(x_empty, x_phase)
        mbarrier.expect(x_full, BOXES * x_desc.block_type.nbytes)
        for box in gl.static_range(BOXES):
            tma.async_copy_global_to_shared(
                x_desc, [head, row + box * ROWS, 0], x_full, x_bufs.index(box)
            )
        x_phase ^= 1
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
            stage, phase = advance(stage, phase, STAGES)


@gluon.jit
def _load_tokens(buffer, TOKENS: gl.constexpr):
    """Load one half as pairs packed into int32: as halves they would take twice the registers."""
    ROWS: gl.constexpr = buffer.shape[0]
    D: gl.constexpr = buffer.shape[1]
    x = buffer.load(TOKENS).to(gl.int16, bitcast=True)
    low, high = x.reshape([ROWS, D // 2, 2]).split()
    return gl.inline_asm_elementwise(
        "mov.b32 $0, {$1, $2};", "=r,h,h", [low, high], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def _multiply(x, c_bufs, stage, SCORES: gl.constexpr, TOKENS: gl.constexpr):
    """Start the product of one half with one tile of centroids."""
    ROWS: gl.constexpr = x.shape[0]
    COLUMNS: gl.constexpr = c_bufs.shape[2]
    D: gl.constexpr = c_bufs.shape[3]
    x = unpack_weights(x, c_bufs.dtype, ROWS, D, TOKENS)
    zero = gl.zeros([ROWS, COLUMNS], gl.float32, SCORES)
    return warpgroup_mma(x, keys_of(c_bufs, stage), zero, use_acc=False, is_async=True)


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

    Without a store, which is never done, ptxas moves the comparison behind the wait for the other
    half, where no product runs beside it.
    """
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; .reg .b32 t; or.b32 t, $2, $3; setp.lt.s32 p, t, 0;"
        " @p st.shared.b32 [t], t; mov.b32 $0, $2; mov.b32 $1, $3; }",
        "=r,=r,r,r", [steps], dtype=gl.int32, is_pure=False, pack=2,
    )  # fmt: skip


@gluon.jit
def _store_labels(labels_ptr, best, best_step, row, S, K, COLUMNS: gl.constexpr):
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
    gl.store(labels_ptr + rows, label, mask=rows < S)


@gluon.jit
def _consumer(GROUP: gl.constexpr, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty,
              labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, keep,
              STAGES: gl.constexpr):  # fmt: skip
    """Label 128 tokens of each tile, half a one product ahead of half b."""
    BOXES: gl.constexpr = x_bufs.shape[0]
    ROWS: gl.constexpr = x_bufs.shape[2]
    D: gl.constexpr = x_bufs.shape[3]
    COLUMNS: gl.constexpr = c_bufs.shape[2]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[gl.num_warps(), 1], instr_shape=[16, COLUMNS, 16]
    )
    TOKENS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SCORES, k_width=2)
    COLUMN: gl.constexpr = gl.SliceLayout(0, SCORES)
    nothing = _thread_max(gl.full([ROWS, COLUMNS], -(2**31), gl.int32, SCORES))
    no_step = nothing * 0
    floor_a = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    floor_b = floor_a
    x_buf_a = x_bufs.index(2 * GROUP).reshape([ROWS, D])
    x_buf_b = x_bufs.index(2 * GROUP + 1).reshape([ROWS, D])
    if first_tile < last_tile:
        mbarrier.wait(x_full, 0)
        x_a = _load_tokens(x_buf_a, TOKENS)
        x_b = _load_tokens(x_buf_b, TOKENS)
        mbarrier.arrive(x_empty, count=1)
        x_phase = 1
        stage = 0
        phase = 0
        mbarrier.wait(c_full.index(0), 0)
        a = _multiply(x_a, c_bufs, 0, SCORES, TOKENS)
        for tile in range(first_tile, last_tile):
            best_a = nothing
            best_b = nothing
            step_a = no_step
            step_b = no_step
            # One product at a time: ptxas waits after each of its parts if two are in flight here.
            for step in range(0, steps - 1):
                half = half_bufs.index(stage).reshape([COLUMNS]).load(COLUMN)
                a = warpgroup_mma_wait(0, deps=[a])
                b = _multiply(x_b, c_bufs, stage, SCORES, TOKENS)
                floor_a, best_a, step_a = _compare(a, half, floor_a, best_a, step_a, step, keep)
                step_a = _settle(step_a)
                used = stage
                stage, phase = advance(stage, phase, STAGES)
                mbarrier.wait(c_full.index(stage), phase)
                b = warpgroup_mma_wait(0, deps=[b])
                a = _multiply(x_a, c_bufs, stage, SCORES, TOKENS)
                mbarrier.arrive(c_empty.index(used), count=1)
                floor_b, best_b, step_b = _compare(b, half, floor_b, best_b, step_b, step, keep)
            step = steps - 1
            half = half_bufs.index(stage).reshape([COLUMNS]).load(COLUMN)
            a = warpgroup_mma_wait(0, deps=[a])
            b = _multiply(x_b, c_bufs, stage, SCORES, TOKENS)
            floor_a, best_a, step_a = _compare(a, half, floor_a, best_a, step_a, step, keep)
            step_a = _settle(step_a)
            used = stage
            stage, phase = advance(stage, phase, STAGES)
            # After the last tile a product of what lies in the buffers is thrown away.
            if tile + 1 < last_tile:
                mbarrier.wait(x_full, x_phase)
                mbarrier.wait(c_full.index(stage), phase)
            x_phase ^= 1
            x_a = _load_tokens(x_buf_a, TOKENS)
            b = warpgroup_mma_wait(0, deps=[b])
            a = _multiply(x_a, c_bufs, stage, SCORES, TOKENS)
            mbarrier.arrive(c_empty.index(used), count=1)
            head = tile // tiles_per_head
            row = (tile - head * tiles_per_head) * (BOXES * ROWS) + 2 * GROUP * ROWS
            head_labels = labels_ptr + head.to(gl.int64) * S
            _store_labels(head_labels, best_a, step_a, row, S, K, COLUMNS)
            floor_b, best_b, step_b = _compare(b, half, floor_b, best_b, step_b, step, keep)
            x_b = _load_tokens(x_buf_b, TOKENS)
            mbarrier.arrive(x_empty, count=1)
            _store_labels(head_labels, best_b, step_b, row + ROWS, S, K, COLUMNS)
        warpgroup_mma_wait(0, deps=[a])


# Lengths serve loops and comparisons: compiled once, not once per divisor.
@gluon.jit(do_not_specialize=["S", "K", "tiles_per_head", "tiles", "steps"])
def assign_kernel(
    x_desc, c_desc, half_desc, labels_ptr, S, K, tiles_per_head, tiles, steps, keep,
    STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """One CTA labels a run of tiles of 4 x 64 tokens."""
    ROWS: gl.constexpr = x_desc.block_type.shape[1]
    D: gl.constexpr = x_desc.block_type.shape[2]
    COLUMNS: gl.constexpr = c_desc.block_type.shape[1]
    share = (tiles + gl.num_programs(0) - 1) // gl.num_programs(0)
    first_tile = gl.program_id(0) * share
    last_tile = gl.minimum(first_tile + share, tiles)
    x_bufs = gl.allocate_shared_memory(x_desc.dtype, [4, 1, ROWS, D], x_desc.layout)
    c_bufs = gl.allocate_shared_memory(c_desc.dtype, [STAGES, 1, COLUMNS, D], c_desc.layout)
    half_bufs = gl.allocate_shared_memory(gl.float32, [STAGES, 1, COLUMNS], half_desc.layout)
    x_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    x_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    c_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    c_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(x_full, count=1)
    mbarrier.init(x_empty, count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(c_full.index(i), count=1)
        mbarrier.init(c_empty.index(i), count=2)
    # The tuples must be written out: constants are lost when they pass through a variable.
    gl.warp_specialize([
        (_consumer, (0, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, keep, STAGES)),  # noqa: E501
        (_consumer, (1, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, labels_ptr, first_tile, last_tile, tiles_per_head, steps, S, K, keep, STAGES)),  # noqa: E501
        (_producer, (x_desc, c_desc, half_desc, x_bufs, c_bufs, half_bufs, x_full, x_empty, c_full, c_empty, first_tile, last_tile, tiles_per_head, steps, STAGES)),  # noqa: E501
    ], [4, 1], [REGISTERS, 24])  # fmt: skip
