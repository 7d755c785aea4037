"""``top_blocks`` for a few long rows: many programs share each row's radix search."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs that keep a GPU busy.
_PROGRAMS = 1024
# Entries that a program takes at once, and in the last pass, which needs more registers.
_CHUNK, _KEEP_CHUNK = 2048, 1024


@triton.jit
def load_keys(scores_ptr, forced_ptr, columns, end, FORCED: tl.constexpr):
    """Load scores as int32 of the same order; both zeros are equal, forced ones infinite."""
    inside = columns < end
    scores = tl.load(scores_ptr + columns, mask=inside, other=0.0)
    scores = tl.where(scores == 0.0, 0.0, scores)
    if scores_ptr.dtype.element_ty == tl.float32:
        infinity = 0x7F800000
        bits = scores.to(tl.int32, bitcast=True)
        keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    else:
        infinity = 0x7F80 if scores_ptr.dtype.element_ty == tl.bfloat16 else 0x7C00
        half = scores.to(scores_ptr.dtype.element_ty).to(tl.int16, bitcast=True)
        keys = (half ^ ((half >> 15) & 0x7FFF)).to(tl.int32)
    if FORCED:
        forced = tl.load(forced_ptr + columns, mask=inside, other=0)
        keys = tl.where(forced != 0, infinity, keys)
    return keys


@triton.jit
def _threshold(sums_ptr, bases_ptr, target, row, R, done, BITS: tl.constexpr):
    """Return the threshold's bits that ``done`` rounds know, the others 0."""
    digits = tl.arange(0, 4)
    sums = tl.load(sums_ptr + (done * R + row) * 4 + digits)
    digit = tl.sum(((sums >= target) & (digits > 0)).to(tl.int32), 0)
    digit = tl.where(done > 0, digit, 0)
    return tl.load(bases_ptr + done * R + row) + (digit << tl.minimum(BITS - 2 * done, BITS - 2))


# Known to be a multiple of 16, a part would have each thread take a run of weights; rows of scores
# that do not begin at such a place would then be read in steps.
@triton.jit(do_not_specialize=["done", "part"])
def _round_kernel(
    scores_ptr, weights_ptr, targets_ptr, forced_ptr, sums_ptr, bases_ptr,
    weight_stride, target_stride, forced_stride, R, N, part, done,
    BITS: tl.constexpr, FORCED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program adds the weights of its part of a row at and above each next digit.

    Two bits are found per round: more would compare longer than reading takes.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row * target_stride)
    base = _threshold(sums_ptr, bases_ptr, target, row, R, done, BITS)
    step = tl.full([], 1, tl.int32) << (BITS - 2 - 2 * done)
    scores_ptr += row * N
    forced_ptr += row * forced_stride
    weights_ptr += row * weight_stride
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, N)
    above_one = tl.zeros([CHUNK], tl.int32)
    above_two = tl.zeros([CHUNK], tl.int32)
    above_three = tl.zeros([CHUNK], tl.int32)
    for start in range(first, end, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keys = load_keys(scores_ptr, forced_ptr, columns, end, FORCED)
        weights = tl.load(weights_ptr + columns, mask=columns < end, other=0)
        above_one += tl.where(keys >= base + step, weights, 0)
        above_two += tl.where(keys >= base + 2 * step, weights, 0)
        above_three += tl.where(keys >= base + 3 * step, weights, 0)
    slot = (done + 1) * R + row
    sums_ptr += slot * 4
    tl.atomic_add(sums_ptr + 1, tl.sum(above_one.to(tl.int64)))
    tl.atomic_add(sums_ptr + 2, tl.sum(above_two.to(tl.int64)))
    tl.atomic_add(sums_ptr + 3, tl.sum(above_three.to(tl.int64)))
    # Every program of the row stores the same.
    tl.store(bases_ptr + slot, base)


@triton.jit(do_not_specialize=["part"])
def _held_kernel(
    scores_ptr, weights_ptr, targets_ptr, forced_ptr, sums_ptr, bases_ptr, held_ptr,
    weight_stride, target_stride, forced_stride, R, N, part,
    BITS: tl.constexpr, FORCED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program adds the weights of its part above the threshold and at it."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row * target_stride)
    threshold = _threshold(sums_ptr, bases_ptr, target, row, R, BITS // 2, BITS)
    scores_ptr += row * N
    forced_ptr += row * forced_stride
    weights_ptr += row * weight_stride
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, N)
    above = tl.zeros([CHUNK], tl.int32)
    ties = tl.zeros([CHUNK], tl.int32)
    for start in range(first, end, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keys = load_keys(scores_ptr, forced_ptr, columns, end, FORCED)
        weights = tl.load(weights_ptr + columns, mask=columns < end, other=0)
        above += tl.where(keys > threshold, weights, 0)
        ties += tl.where(keys == threshold, weights, 0)
    held_ptr += (row * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(held_ptr, tl.sum(above.to(tl.int64)))
    tl.store(held_ptr + 1, tl.sum(ties.to(tl.int64)))


@triton.jit(do_not_specialize=["part"])
def _keep_kernel(
    scores_ptr, weights_ptr, targets_ptr, forced_ptr, sums_ptr, bases_ptr, held_ptr, keep_ptr,
    weight_stride, target_stride, forced_stride, R, N, part,
    BITS: tl.constexpr, FORCED: tl.constexpr, CHUNK: tl.constexpr, PAD_PARTS: tl.constexpr,
):  # fmt: skip
    """One program keeps the entries of its part."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row * target_stride)
    threshold = _threshold(sums_ptr, bases_ptr, target, row, R, BITS // 2, BITS)
    # Entries at the threshold share what those above leave, the first ones first.
    parts = tl.arange(0, PAD_PARTS)
    held_ptr += row * tl.num_programs(1) * 2
    above = tl.load(held_ptr + 2 * parts, mask=parts < tl.num_programs(1), other=0)
    ties = tl.load(held_ptr + 2 * parts + 1, mask=parts <= tl.program_id(1), other=0)
    held = tl.sum(above, 0) + tl.sum(tl.where(parts < tl.program_id(1), ties, 0), 0)
    own = tl.sum(tl.where(parts == tl.program_id(1), ties, 0), 0)
    scores_ptr += row * N
    forced_ptr += row * forced_stride
    weights_ptr += row * weight_stride
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, N)
    # In one part of a row at most only some of them stay: the others need no running sum.
    all_ties = held + own < target
    some = (held < target) & (held + own >= target)
    for start in range(first, end, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keys = load_keys(scores_ptr, forced_ptr, columns, end, FORCED)
        keep = (keys > threshold) | ((keys == threshold) & all_ties)
        if some:
            weights = tl.load(weights_ptr + columns, mask=columns < end, other=0)
            weights = tl.where(keys == threshold, weights, 0).to(tl.int64)
            before = held + tl.cumsum(weights, 0) - weights
            keep = (keys > threshold) | ((keys == threshold) & (before < target))
            held += tl.sum(weights, 0)
        if FORCED:
            keep |= tl.load(forced_ptr + columns, mask=columns < end, other=0) != 0
        tl.store(keep_ptr + row * N + columns, keep.to(tl.int8), mask=columns < end)


def keep_top_weight_split(
    scores: Tensor, weights: Tensor, targets: Tensor, forced: Tensor | None = None
) -> Tensor:
    """Keep the best entries of each row; see ``top_blocks.keep_top_weight``.

    Args:
        scores: (R, N) float32 or of 16 bits, contiguous.
        weights: (R | 1, N) int32, contiguous.
        targets: (R | 1, 1) int64, contiguous.
        forced: (R | 1, N) bool, contiguous, or None.
    """
    R, N = scores.shape
    part = -(-N // max(1, _PROGRAMS // R))
    part = -(-part // _CHUNK) * _CHUNK
    grid = R, -(-N // part)
    device = scores.device
    bits = 8 * scores.element_size()
    sums = torch.zeros(bits // 2 + 1, R, 4, dtype=torch.int64, device=device)
    bases = torch.full((bits // 2 + 1, R), -(1 << bits - 1), dtype=torch.int32, device=device)
    held = torch.empty(*grid, 2, dtype=torch.int64, device=device)
    keep = torch.empty(R, N, dtype=torch.bool, device=device)
    marks = scores if forced is None else forced.view(torch.uint8)
    tensors = scores, weights, targets, marks, sums, bases
    strides = (
        row_stride(weights),
        row_stride(targets),
        0 if forced is None else row_stride(forced),
    )
    shape = R, N, part
    options = {"BITS": bits, "FORCED": forced is not None, "num_warps": 8}
    for done in range(bits // 2):
        _round_kernel[grid](*tensors, *strides, *shape, done, CHUNK=_CHUNK, **options)
    _held_kernel[grid](*tensors, held, *strides, *shape, CHUNK=_CHUNK, **options)
    _keep_kernel[grid](
        *tensors, held, keep.view(torch.int8), *strides, *shape,
        CHUNK=_KEEP_CHUNK, PAD_PARTS=triton.next_power_of_2(grid[1]), **options,
    )  # fmt: skip
    return keep


def row_stride(x: Tensor) -> int:
    """Return the distance between rows of (R | 1, N), 0 where all share one."""
    return 0 if x.shape[0] == 1 else x.shape[1]
