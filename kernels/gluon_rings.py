"""Rings of key and value tiles in shared memory: filled through TMA, read by warpgroups."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma


@gluon.jit
def advance(stage, phase, STAGES: gl.constexpr):
    """Step to the next stage of a ring; the phase flips where it begins anew."""
    stage += 1
    if stage == STAGES:
        stage = 0
        phase ^= 1
    return stage, phase


@gluon.jit
def listed_rows(index_ptr, tile, count, seq, CHUNK: gl.constexpr, BOXES: gl.constexpr):
    """First key rows of the boxes of one tile."""
    rows = ()
    for box in gl.static_range(BOXES):
        slot = tile * BOXES + box
        row = gl.load(index_ptr + gl.minimum(slot, count - 1)) * CHUNK
        # Past the end of the list: a box outside the tensor is filled with zeros.
        rows = rows + (gl.where(slot < count, row, seq),)  # noqa: RUF005
    return rows


@gluon.jit
def load_boxes(desc, full, buffers, stage, head, rows):
    """Fill one stage with boxes that start at ``rows``; one mbarrier counts all bytes."""
    CHUNK: gl.constexpr = desc.block_type.shape[1]
    BOXES: gl.constexpr = buffers.shape[2] // CHUNK
    mbarrier.expect(full.index(stage), BOXES * desc.block_type.nbytes)
    for box in gl.static_range(BOXES):
        tma.async_copy_global_to_shared(
            desc, [head, rows[box], 0], full.index(stage),
            buffers.index(stage).slice(box * CHUNK, CHUNK, dim=1),
        )  # fmt: skip


_PREFETCH = gl.constexpr(
    "{ .reg .pred one; elect.sync _|one, -1;"
    " @one cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }"
)


@gluon.jit
def prefetch(ptr, count):
    """Bring ``count`` floats, a multiple of 4, to L2; called by a single warp."""
    gl.inline_asm_elementwise(
        _PREFETCH, "=r,l,r", [ptr.to(gl.int64), count * 4], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def load_means(k_desc, v_desc, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty, bias_ptr, head,
                tiles, stage, phase, STAGES: gl.constexpr):  # fmt: skip
    """Go on with tiles of block means, first to last."""
    # Consumers read the bias of a tile of means where they would not wait for anything else.
    prefetch(bias_ptr, tiles * k_bufs.shape[2])
    for tile in range(0, tiles):
        rows = (tile * k_bufs.shape[2],)
        mbarrier.wait(k_empty.index(stage), phase)
        load_boxes(k_desc, k_full, k_bufs, stage, head, rows)
        mbarrier.wait(v_empty.index(stage), phase)
        load_boxes(v_desc, v_full, v_bufs, stage, head, rows)
        stage, phase = advance(stage, phase, STAGES)


@gluon.jit
def load_listed(k_desc, v_desc, k_bufs, v_bufs, k_full, k_empty, v_full, v_empty, index_ptr, head,
                 count, tiles, seq_kv, CHUNK: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Fill the rings with the tiles of a list, last to first."""
    BOXES: gl.constexpr = k_bufs.shape[2] // CHUNK
    stage = 0
    # Waiting for the phase before the first one passes at once.
    phase = 1
    for done in range(0, tiles):
        # Read before waiting: the list's latency then hides behind the wait.
        rows = listed_rows(index_ptr, tiles - 1 - done, count, seq_kv, CHUNK, BOXES)
        mbarrier.wait(k_empty.index(stage), phase)
        load_boxes(k_desc, k_full, k_bufs, stage, head, rows)
        mbarrier.wait(v_empty.index(stage), phase)
        load_boxes(v_desc, v_full, v_bufs, stage, head, rows)
        stage, phase = advance(stage, phase, STAGES)
    return stage, phase


@gluon.jit
def keys_of(k_bufs, stage):
    """Return one stage as the second operand of the product with queries: (D, TILE_KV)."""
    TILE_KV: gl.constexpr = k_bufs.shape[2]
    D: gl.constexpr = k_bufs.shape[3]
    return k_bufs.index(stage).reshape([TILE_KV, D]).permute((1, 0))


@gluon.jit
def values_of(v_bufs, stage):
    """Return one stage as the second operand of the product with weights: (TILE_KV, D)."""
    TILE_KV: gl.constexpr = v_bufs.shape[2]
    D: gl.constexpr = v_bufs.shape[3]
    return v_bufs.index(stage).reshape([TILE_KV, D])


@gluon.jit
def release_tiles(k_full, k_empty, v_full, v_empty, tiles, STAGES: gl.constexpr):
    """Stand in for a warpgroup without rows: free every stage as it fills."""
    stage = 0
    phase = 0
    for _ in range(0, tiles):
        mbarrier.wait(k_full.index(stage), phase)
        mbarrier.arrive(k_empty.index(stage), count=1)
        mbarrier.wait(v_full.index(stage), phase)
        mbarrier.arrive(v_empty.index(stage), count=1)
        stage, phase = advance(stage, phase, STAGES)
