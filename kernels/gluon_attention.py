"""Warp-specialised block-sparse attention for Hopper in Gluon.

One CTA computes one query tile: ``GROUPS`` consumer warpgroups of 64 rows each, and one producer
warp that fills a ring of K tiles and a ring of V tiles through TMA. A tile of ``TILE_KV`` keys is
filled by TILE_KV / CHUNK boxes of one mask block each, so masks may be finer than tiles.

The list of a tile is read from its end: the partial last block of the sequence and the padding of
an incomplete tile then both fall into the first tile, the only one that is masked, and every CTA
walks keys in the same direction, which keeps them in L2.
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

from vidsparse.kernels.gluon_rings import (
    advance,
    keys_of,
    load_listed,
    load_means,
    release_tiles,
    values_of,
)
from vidsparse.kernels.gluon_softmax import (
    fixed_softmax,
    log2,
    online_softmax,
    pack_weights,
    thread_sums,
    unpack_weights,
)


@gluon.jit
def _producer(q_desc, k_desc, v_desc, k_mean, v_mean, q_bufs, k_bufs, v_bufs, q_full, k_full,
              k_empty, v_full, v_empty, index_ptr, head, first_row, count, tiles, mean_tiles,
              bias_ptr, seq_kv, moved_ptr, k_moved, v_moved,
              CHUNK: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr,
              MEANS: gl.constexpr, MOVED: gl.constexpr):  # fmt: skip
    ROWS: gl.constexpr = q_desc.block_type.shape[1]
    if MOVED:
        # Consumers gather their own queries.
        if gl.load(moved_ptr + head) != 0:
            load_listed(k_moved, v_moved, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty,
                         index_ptr, head, count, tiles, seq_kv, CHUNK, STAGES)  # fmt: skip
        else:
            load_listed(k_desc, v_desc, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty,
                         index_ptr, head, count, tiles, seq_kv, CHUNK, STAGES)  # fmt: skip
    elif tiles + mean_tiles > 0:
        mbarrier.expect(q_full, GROUPS * q_desc.block_type.nbytes)
        for group in gl.static_range(GROUPS):
            tma.async_copy_global_to_shared(
                q_desc, [head, first_row + group * ROWS, 0], q_full, q_bufs.index(group)
            )
        stage, phase = load_listed(k_desc, v_desc, k_bufs, v_bufs, k_full, k_empty, v_full,
                                    v_empty, index_ptr, head, count, tiles, seq_kv, CHUNK,
                                    STAGES)  # fmt: skip
        if MEANS:
            load_means(k_mean, v_mean, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty, bias_ptr,
                        head, mean_tiles, stage, phase, STAGES)  # fmt: skip


@gluon.jit
def _statistic_reference(lse_ptr, rows, seq_q, STATS: gl.constexpr):
    """Return what each row's statistics are taken against, or weighed with: nothing outside."""
    if STATS == 2:
        return gl.where(rows < seq_q, 0.0, -float("inf"))
    if STATS == 3:
        return gl.where(rows < seq_q, 1.0, 0.0)
    lse = gl.load(lse_ptr + rows, mask=rows < seq_q, other=float("inf"))
    # Rows without keys weigh nothing either.
    return gl.where(lse == -float("inf"), float("inf"), lse) * 1.4426950408889634


@gluon.jit
def _row_statistic(tile_max, tile_sum, row_max, row_sum, reference, STATS: gl.constexpr):
    """Compare one tile with each row: STATS 1 mass against a given LSE, 2 and 3 ``RunningStat``.

    ``tile_sum`` is in units of 2^row_max; maxima are base-2 logits.
    """
    if STATS == 2:
        return tile_max - row_max + reference
    if STATS == 3:
        return tile_sum / row_sum * reference
    return tile_sum * gl.exp2(row_max - reference)


@gluon.jit
def _store_statistic(stats_ptr, tile, rows, GROUP: gl.constexpr, GROUPS: gl.constexpr,
                     WARPS: gl.constexpr, STATS: gl.constexpr):  # fmt: skip
    """Reduce a tile's rows, or their sums by thread, to one number per warp: no warp waits."""
    rows = gl.reshape(rows, [WARPS, rows.numel // WARPS])
    value = gl.max(rows, axis=1) if STATS == 2 else gl.sum(rows, axis=1)
    warps = gl.arange(0, WARPS, layout=value.type.layout)
    gl.store(stats_ptr + (tile * GROUPS + GROUP) * WARPS + warps, value)


@gluon.jit
def _drop_keys(scores, lengths, BOXES: gl.constexpr, LAYOUT: gl.constexpr):
    """Mask the keys past each box's length, a byte each."""
    CHUNK: gl.constexpr = scores.shape[1] // BOXES
    columns = gl.arange(0, scores.shape[1], layout=gl.SliceLayout(0, LAYOUT))
    own = (lengths >> (columns // CHUNK * 8).to(lengths.dtype)).to(gl.int32) & 255
    return gl.where(gl.expand_dims(columns % CHUNK < own, 0), scores, -float("inf"))


@gluon.jit
def _mean_bias(bias_ptr, tile, TILE_KV: gl.constexpr, LAYOUT: gl.constexpr):
    """Load what to add to the products with a tile of means: log sizes, far less where kept."""
    columns = gl.arange(0, TILE_KV, layout=gl.SliceLayout(0, LAYOUT))
    return gl.expand_dims(gl.load(bias_ptr + tile * TILE_KV + columns), 0)


@gluon.jit
def _tokens_at(order_ptr, positions, end, seq):
    """Return the tokens at some positions, and which of both lie inside."""
    tokens = gl.load(order_ptr + positions, mask=positions < end, other=-1)
    # Orders out of range would leave the tensor.
    return tokens, (tokens >= 0) & (tokens < seq)


@gluon.jit
def attend_rows(GROUP: gl.constexpr, o_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty,
                v_full, v_empty, turn, lse_ptr, head, first_row, list_tiles, mean_tiles, bias_ptr,
                limit, scale, seq_q, lengths_ptr, count, masked, end_row, out_stride_h,
                out_stride_s, head_size, q_ptr, q_stride_s, order_ptr, stats_lse_ptr, stats_ptr,
                BOXES: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr,
                PINGPONG: gl.constexpr, RAGGED: gl.constexpr, CUBIC_SHARE: gl.constexpr,
                STATS: gl.constexpr, MEANS: gl.constexpr, FIXED: gl.constexpr,
                MOVED: gl.constexpr):  # fmt: skip
    """Attend 64 rows to the list, then to the means of skipped blocks.

    For ragged masks ``o_desc`` is a pointer, ``masked`` tiles have gaps and ``lengths_ptr`` the
    lengths of each tile's boxes in one integer. FIXED takes the first
    tile's maximum as the reference of all weights and gives rows that overflow the LSE NaN. MOVED
    reads the query of each row, and stores its output and LSE, at the token that ``order_ptr`` has
    for it; ``o_desc`` is a pointer then, too.
    """
    ROWS: gl.constexpr = q_bufs.shape[2]
    D: gl.constexpr = q_bufs.shape[3]
    TILE_KV: gl.constexpr = k_bufs.shape[2]
    WARPS: gl.constexpr = gl.num_warps()
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, TILE_KV, 16])  # fmt: skip
    ACC: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, D, 16])  # fmt: skip
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=ACC, k_width=2)
    SCORE_ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    ACC_ROW: gl.constexpr = gl.SliceLayout(1, ACC)
    # Whole rows of 16-byte pieces, for what does not go through TMA.
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])
    dtype: gl.constexpr = v_bufs.dtype
    # A tile ahead its latency hides behind products, but three groups lack the registers.
    BIAS_AHEAD: gl.constexpr = GROUPS < 3

    q = q_bufs.index(GROUP).reshape([ROWS, D])
    acc = gl.zeros([ROWS, D], gl.float32, ACC)
    row_max = gl.full([ROWS], -float("inf"), gl.float32, SCORE_ROW)
    row_sum = gl.zeros([ROWS], gl.float32, SCORE_ROW)
    zero = gl.zeros([ROWS, TILE_KV], gl.float32, SCORES)
    if STATS:
        own_rows = first_row + GROUP * ROWS + gl.arange(0, ROWS, layout=SCORE_ROW)
        reference = _statistic_reference(
            stats_lse_ptr + head.to(gl.int64) * seq_q, own_rows, seq_q, STATS
        )
    tiles = list_tiles + mean_tiles
    if RAGGED:
        chunk_tiles = (count + BOXES - 1) // BOXES
        if first_row + GROUP * ROWS >= end_row:
            release_tiles(k_full, k_empty, v_full, v_empty, tiles, STAGES)
            tiles = 0
    if tiles > 0:
        if MOVED:
            own = first_row + GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, COPY))
            tokens, own_inside = _tokens_at(order_ptr, own, end_row, seq_q)
            q_columns = gl.arange(0, D, layout=gl.SliceLayout(0, COPY))
            q_offsets = gl.expand_dims(tokens.to(gl.int64) * q_stride_s, 1)
            q_offsets += gl.expand_dims(q_columns, 0)
            present = gl.expand_dims(own_inside, 1) & gl.expand_dims(q_columns < head_size, 0)
            q.store(gl.load(q_ptr + q_offsets, mask=present, other=0.0))
            fence_async_shared()
        else:
            mbarrier.wait(q_full, 0)
        mbarrier.wait(k_full.index(0), 0)
        s = warpgroup_mma(q, keys_of(k_bufs, 0), zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(0), count=1)
        if RAGGED:
            if (masked > 0) | (MEANS & (list_tiles == 0)):
                lengths = gl.load(lengths_ptr + gl.maximum(chunk_tiles - 1, 0))
                kept = _drop_keys(s, lengths, BOXES, SCORES)
                if MEANS:
                    first_bias = _mean_bias(bias_ptr, 0, TILE_KV, SCORES)
                    kept = gl.where(list_tiles == 0, s + first_bias, kept)
                s = kept
        elif (limit < TILE_KV) | (MEANS & (list_tiles == 0)):
            column = gl.arange(0, TILE_KV, layout=gl.SliceLayout(0, SCORES))
            s = gl.where(gl.expand_dims(column, 0) < limit, s, -float("inf"))
            if MEANS:
                first_bias = _mean_bias(bias_ptr, 0, TILE_KV, SCORES)
                s = s + gl.where(list_tiles == 0, first_bias, 0.0)
        p, decay, row_max, row_sum, tile_max, tile_sum = online_softmax(
            s, row_max, row_sum, scale, CUBIC_SHARE
        )
        first_max = row_max
        first_sum = row_sum
        if FIXED:
            sums = thread_sums(p)
            SUM_ROW: gl.constexpr = gl.SliceLayout(1, sums.type.layout)
        if STATS:
            if FIXED:
                # Weights are relative to one maximum, so one factor makes them masses.
                share = gl.convert_layout(gl.exp2(row_max - reference), SUM_ROW)
                share = gl.expand_dims(share, 1)
                pending = sums * share
            else:
                pending = _row_statistic(tile_max, tile_sum, row_max, row_sum, reference, STATS)
        packed = pack_weights(p, dtype)
        k_stage = 1 if STAGES > 1 else 0
        k_phase = 0 if STAGES > 1 else 1
        v_stage = 0
        v_phase = 0
        if tiles > 1:
            mbarrier.wait(k_full.index(k_stage), k_phase)
        # The list, then the means: two loops, so that the first has no branch for the second.
        for PHASE in gl.static_range(2 if MEANS else 1):
            begin = gl.maximum(list_tiles, 1) if PHASE == 1 else 1
            end = tiles if PHASE == 1 else list_tiles
            if PHASE == 1 and BIAS_AHEAD:
                first_mean = gl.maximum(gl.minimum(begin, tiles - 1) - list_tiles, 0)
                bias = _mean_bias(bias_ptr, first_mean, TILE_KV, SCORES)
            for done in range(begin, end):
                if PINGPONG:
                    mbarrier.wait(turn.index(GROUP), (done - 1) & 1)
                s_next = warpgroup_mma(
                    q, keys_of(k_bufs, k_stage), zero, use_acc=False, is_async=True
                )
                mbarrier.wait(v_full.index(v_stage), v_phase)
                p16 = unpack_weights(packed, dtype, ROWS, TILE_KV, WEIGHTS)
                acc_next = warpgroup_mma(p16, values_of(v_bufs, v_stage), acc, is_async=True)
                if PINGPONG:
                    mbarrier.arrive(turn.index((GROUP + 1) % GROUPS), count=1)
                if STATS:  # noqa: SIM102
                    if PHASE == 0:
                        # The tile before: its reduction hides behind the products just issued.
                        _store_statistic(stats_ptr, list_tiles - done, pending, GROUP, GROUPS,
                                         WARPS, STATS)  # fmt: skip
                s = warpgroup_mma_wait(1, deps=[s_next])
                mbarrier.arrive(k_empty.index(k_stage), count=1)
                if PHASE == 1:
                    if not BIAS_AHEAD:
                        bias = _mean_bias(bias_ptr, done - list_tiles, TILE_KV, SCORES)
                    s = s + bias
                elif RAGGED:  # noqa: SIM102
                    if done < masked:
                        lengths = gl.load(lengths_ptr + chunk_tiles - 1 - done)
                        s = _drop_keys(s, lengths, BOXES, SCORES)
                if FIXED:
                    p, tile_sums = fixed_softmax(s, row_max, scale, CUBIC_SHARE)
                    sums += tile_sums
                else:
                    p, decay, row_max, row_sum, tile_max, tile_sum = online_softmax(
                        s, row_max, row_sum, scale, CUBIC_SHARE
                    )
                if STATS:  # noqa: SIM102
                    if PHASE == 0:
                        if FIXED:
                            pending = tile_sums * share
                        else:
                            pending = _row_statistic(
                                tile_max, tile_sum, row_max, row_sum, reference, STATS
                            )
                if PHASE == 1 and BIAS_AHEAD:
                    next_mean = gl.minimum(done + 1, tiles - 1) - list_tiles
                    bias = _mean_bias(bias_ptr, next_mean, TILE_KV, SCORES)
                used_stage = v_stage
                v_stage = k_stage
                v_phase = k_phase
                k_stage, k_phase = advance(k_stage, k_phase, STAGES)
                # Waiting for the next K tile here, not at the top, is deliberate: the spin loop
                # ends the basic block, without it ptxas hoists the wait for PV above the
                # exponentials.
                if done + 1 < tiles:
                    mbarrier.wait(k_full.index(k_stage), k_phase)
                acc = warpgroup_mma_wait(0, deps=[acc_next, p16])[0]
                mbarrier.arrive(v_empty.index(used_stage), count=1)
                if not FIXED:
                    acc_decay = gl.convert_layout(decay, ACC_ROW, assert_trivial=True)
                    acc = acc * gl.expand_dims(acc_decay, 1)
                packed = pack_weights(p, dtype)
            if STATS:  # noqa: SIM102
                if PHASE == 0:  # noqa: SIM102
                    if list_tiles > 0:
                        _store_statistic(stats_ptr, 0, pending, GROUP, GROUPS, WARPS, STATS)
                        if STATS > 1:
                            # The first tile met no other: it is compared with all of them.
                            first_sum = first_sum * gl.exp2(first_max - row_max)
                            pending = _row_statistic(
                                first_max, first_sum, row_max, row_sum, reference, STATS
                            )
                            _store_statistic(stats_ptr, list_tiles - 1, pending, GROUP, GROUPS,
                                             WARPS, STATS)  # fmt: skip
        mbarrier.wait(v_full.index(v_stage), v_phase)
        p16 = unpack_weights(packed, dtype, ROWS, TILE_KV, WEIGHTS)
        acc = warpgroup_mma(p16, values_of(v_bufs, v_stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        if FIXED:
            row_sum = gl.convert_layout(gl.sum(sums, axis=1), SCORE_ROW, assert_trivial=True)
    filled = row_sum > 0
    safe_sum = gl.where(filled, row_sum, 1.0)
    # Past 32 basic blocks LLVM gives all partitions one copy of shared memory's address, which
    # groups past the first then copy before each product. Two groups lose 1.2 % by it; three, of
    # D = 64, gain 2.6 % and keep the library's branches.
    log_sum = gl.log2(safe_sum) if GROUPS == 3 else log2(safe_sum)
    lse = gl.where(filled, (row_max + log_sum) * 0.6931471805599453, -float("inf"))
    if FIXED:
        # NaN compares as false: a row passes only with room to spare.
        small = gl.convert_layout(gl.max(gl.abs(acc), axis=1), SCORE_ROW, assert_trivial=True)
        lse = gl.where((row_sum < 1e30) & (small < 1e37), lse, float("nan"))
    rows = first_row + GROUP * ROWS + gl.arange(0, ROWS, layout=SCORE_ROW)
    lse_ptr += head.to(gl.int64) * seq_q
    if MOVED:
        rows, inside = _tokens_at(order_ptr, rows, end_row, seq_q)
        gl.store(lse_ptr + rows, lse, mask=inside)
    else:
        gl.store(lse_ptr + rows, lse, mask=rows < end_row)
    inverse = gl.convert_layout(1.0 / safe_sum, ACC_ROW, assert_trivial=True)
    # This warpgroup's Q tile has been read for the last time: it becomes the O staging tile.
    q.store((acc * gl.expand_dims(inverse, 1)).to(dtype))
    if RAGGED or MOVED:
        # Rows past the end belong to another block: TMA would overwrite them.
        out = q.load(COPY)
        out_rows = first_row + GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, COPY))
        stored = out_rows < end_row
        if MOVED:
            out_rows, stored = _tokens_at(order_ptr, out_rows, end_row, seq_q)
        columns = gl.arange(0, D, layout=gl.SliceLayout(0, COPY))
        offsets = gl.expand_dims(out_rows.to(gl.int64) * out_stride_s, 1)
        offsets += gl.expand_dims(columns, 0)
        keep = gl.expand_dims(stored, 1) & gl.expand_dims(columns < head_size, 0)
        gl.store(o_desc + head.to(gl.int64) * out_stride_h + offsets, out, mask=keep)
    else:
        fence_async_shared()
        tma.async_copy_shared_to_global(
            o_desc, [head, first_row + GROUP * ROWS, 0], q_bufs.index(GROUP)
        )
        tma.store_wait(0)


@gluon.jit
def attention_kernel(
    q_desc, k_desc, v_desc, o_desc, lse_ptr, order_ptr, count_ptr, index_ptr,
    stats_lse_ptr, stats_ptr, k_mean, v_mean, bias_ptr, num_means_ptr,
    moved_ptr, k_moved, v_moved, q_order_ptr, q_ptr,
    list_stride_h, scale, seq_q, seq_kv, num_q_blocks, num_kv_blocks, tiles_per_block,
    padded_means, q_stride_h, q_stride_s, out_stride_h, out_stride_s, head_size,
    TILE_KV: gl.constexpr, CHUNK: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr,
    PINGPONG: gl.constexpr, REGISTERS: gl.constexpr, CUBIC_SHARE: gl.constexpr,
    STATS: gl.constexpr, MEANS: gl.constexpr, FIXED: gl.constexpr, MOVED: gl.constexpr,
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
    stats_ptr += item.to(gl.int64) * (num_kv_blocks * GROUPS * 4)
    count = gl.minimum(gl.load(count_ptr + lists), num_kv_blocks)
    first_row = q_tile * (ROWS * GROUPS)
    tiles = (count + BOXES - 1) // BOXES
    # Valid keys of the first tile: whole blocks, then the last block as far as the sequence goes.
    last = gl.load(index_ptr + gl.maximum(count - 1, 0))
    limit = (count - 1 - (tiles - 1) * BOXES) * CHUNK + gl.minimum(CHUNK, seq_kv - last * CHUNK)
    limit = gl.maximum(limit, 1)
    mean_tiles = 0
    if MEANS:
        mean_tiles = (gl.load(num_means_ptr + lists) + TILE_KV - 1) // TILE_KV
        bias_ptr += lists.to(gl.int64) * padded_means
        # An empty list leaves the first tile to the means.
        limit = gl.where(tiles > 0, limit, TILE_KV)
    if MOVED:
        q_ptr += head.to(gl.int64) * q_stride_h
        q_order_ptr += head.to(gl.int64) * seq_q

    q_bufs = gl.allocate_shared_memory(
        q_desc.dtype, [GROUPS, 1, ROWS, D], q_desc.layout)  # fmt: skip
    k_bufs = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, TILE_KV, D], k_desc.layout)
    v_bufs = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 1, TILE_KV, D], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    # Only barriers that are used may be initialised: the memory of others is taken for what the
    # partitions are handed, and nothing orders these stores after an initialisation.
    if not MOVED:
        mbarrier.init(q_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=GROUPS)
        mbarrier.init(v_empty.index(i), count=GROUPS)
    turn = q_full
    if PINGPONG:
        turn = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(GROUPS):
            mbarrier.init(turn.index(i), count=1)
        mbarrier.arrive(turn.index(0), count=1)
    # The tuples must be written out: constants are lost when they pass through a variable.
    if GROUPS == 1:
        gl.warp_specialize([
            (attend_rows, (0, o_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, turn, lse_ptr, head, first_row, tiles, mean_tiles, bias_ptr, limit, scale, seq_q, index_ptr, count, 0, seq_q, out_stride_h, out_stride_s, head_size, q_ptr, q_stride_s, q_order_ptr, stats_lse_ptr, stats_ptr, BOXES, GROUPS, STAGES, PINGPONG, False, CUBIC_SHARE, STATS, MEANS, FIXED, MOVED)),  # noqa: E501
            (_producer, (q_desc, k_desc, v_desc, k_mean, v_mean, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, index_ptr, head, first_row, count, tiles, mean_tiles, bias_ptr, seq_kv, moved_ptr, k_moved, v_moved, CHUNK, GROUPS, STAGES, MEANS, MOVED)),  # noqa: E501
        ], [1], [24])  # fmt: skip
    elif GROUPS == 2:
        gl.warp_specialize([
            (attend_rows, (0, o_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, turn, lse_ptr, head, first_row, tiles, mean_tiles, bias_ptr, limit, scale, seq_q, index_ptr, count, 0, seq_q, out_stride_h, out_stride_s, head_size, q_ptr, q_stride_s, q_order_ptr, stats_lse_ptr, stats_ptr, BOXES, GROUPS, STAGES, PINGPONG, False, CUBIC_SHARE, STATS, MEANS, FIXED, MOVED)),  # noqa: E501
            (attend_rows, (1, o_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, turn, lse_ptr, head, first_row, tiles, mean_tiles, bias_ptr, limit, scale, seq_q, index_ptr, count, 0, seq_q, out_stride_h, out_stride_s, head_size, q_ptr, q_stride_s, q_order_ptr, stats_lse_ptr, stats_ptr, BOXES, GROUPS, STAGES, PINGPONG, False, CUBIC_SHARE, STATS, MEANS, FIXED, MOVED)),  # noqa: E501
            (_producer, (q_desc, k_desc, v_desc, k_mean, v_mean, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, index_ptr, head, first_row, count, tiles, mean_tiles, bias_ptr, seq_kv, moved_ptr, k_moved, v_moved, CHUNK, GROUPS, STAGES, MEANS, MOVED)),  # noqa: E501
        ], [4, 1], [REGISTERS, 24])  # fmt: skip
    else:
        gl.warp_specialize([
            (attend_rows, (0, o_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, turn, lse_ptr, head, first_row, tiles, mean_tiles, bias_ptr, limit, scale, seq_q, index_ptr, count, 0, seq_q, out_stride_h, out_stride_s, head_size, q_ptr, q_stride_s, q_order_ptr, stats_lse_ptr, stats_ptr, BOXES, GROUPS, STAGES, PINGPONG, False, CUBIC_SHARE, STATS, MEANS, FIXED, MOVED)),  # noqa: E501
            (attend_rows, (1, o_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, turn, lse_ptr, head, first_row, tiles, mean_tiles, bias_ptr, limit, scale, seq_q, index_ptr, count, 0, seq_q, out_stride_h, out_stride_s, head_size, q_ptr, q_stride_s, q_order_ptr, stats_lse_ptr, stats_ptr, BOXES, GROUPS, STAGES, PINGPONG, False, CUBIC_SHARE, STATS, MEANS, FIXED, MOVED)),  # noqa: E501
            (attend_rows, (2, o_desc, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, turn, lse_ptr, head, first_row, tiles, mean_tiles, bias_ptr, limit, scale, seq_q, index_ptr, count, 0, seq_q, out_stride_h, out_stride_s, head_size, q_ptr, q_stride_s, q_order_ptr, stats_lse_ptr, stats_ptr, BOXES, GROUPS, STAGES, PINGPONG, False, CUBIC_SHARE, STATS, MEANS, FIXED, MOVED)),  # noqa: E501
            (_producer, (q_desc, k_desc, v_desc, k_mean, v_mean, q_bufs, k_bufs, v_bufs, q_full, k_full, k_empty, v_full, v_empty, index_ptr, head, first_row, count, tiles, mean_tiles, bias_ptr, seq_kv, moved_ptr, k_moved, v_moved, CHUNK, GROUPS, STAGES, MEANS, MOVED)),  # noqa: E501
        ], [4, 4, 1], [REGISTERS, REGISTERS, 24])  # fmt: skip
