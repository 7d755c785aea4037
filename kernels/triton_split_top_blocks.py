"""``top_blocks`` for a few long rows: many programs share each row's radix search."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs that keep a GPU busy.
_PROGRAMS = 1024
# Entries that a program takes at once.
_CHUNK = 2048
# Rows that a program takes together where all share weights, which are then read once for them.
_ROWS = 4


@triton.jit
def sort_keys(scores, forced, FORCED: tl.constexpr):
    """Map scores to int32 of the same order; both zeros are equal, forced ones infinite."""
    dtype: tl.constexpr = scores.dtype
    scores = tl.where(scores == 0.0, 0.0, scores)
    if dtype == tl.float32:
        infinity = 0x7F800000
        bits = scores.to(tl.int32, bitcast=True)
        keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    else:
        infinity = 0x7F80 if dtype == tl.bfloat16 else 0x7C00
        half = scores.to(dtype).to(tl.int16, bitcast=True)
        keys = (half ^ ((half >> 15) & 0x7FFF)).to(tl.int32)
    if FORCED:
        keys = tl.where(forced != 0, infinity, keys)
    return keys


@triton.jit
def _load(scores_ptr, weights_ptr, forced_ptr, rows, columns, R, N, end, FORCED: tl.constexpr):
    """Return keys (rows, columns), and weights and forced marks, (1, columns), of all rows."""
    inside = (columns < end)[None, :]
    place = rows.to(tl.int64)[:, None] * N + columns[None, :]
    scores = tl.load(scores_ptr + place, mask=(rows < R)[:, None] & inside, other=0.0)
    weights = tl.load(weights_ptr + columns[None, :], mask=inside, other=0)
    forced = weights
    if FORCED:
        forced = tl.load(forced_ptr + columns[None, :], mask=inside, other=0)
    return sort_keys(scores, forced, FORCED), weights, forced


@triton.jit
def _threshold(sums_ptr, bases_ptr, target, rows, R, done, BITS: tl.constexpr):
    """Return the threshold's bits that ``done`` rounds know, the others 0, of each row."""
    digits = tl.arange(0, 4)[None, :]
    inside = rows < R
    slots = done * R + rows
    sums = tl.load(sums_ptr + slots[:, None] * 4 + digits, mask=inside[:, None], other=0)
    digit = tl.sum(((sums >= target[:, None]) & (digits > 0)).to(tl.int32), 1)
    digit = tl.where(done > 0, digit, 0)
    base = tl.load(bases_ptr + slots, mask=inside, other=0)
    return base + (digit << tl.minimum(BITS - 2 * done, BITS - 2))


# Known to be a multiple of 16, a part would have each thread take a run of weights; rows of scores
# that do not begin at such a place would then be read in steps.
@triton.jit(do_not_specialize=["done", "part"])
def _round_kernel(
    scores_ptr, weights_ptr, targets_ptr, forced_ptr, sums_ptr, bases_ptr,
    weight_stride, target_stride, forced_stride, R, N, part, done,
    BITS: tl.constexpr, FORCED: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program adds the weights of its part of ROWS rows at and above each next digit.

    Two bits are found per round, by three comparisons of each entry.
    """
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target = tl.load(targets_ptr + rows * target_stride, mask=rows < R, other=0)
    base = _threshold(sums_ptr, bases_ptr, target, rows, R, done, BITS)
    step = tl.full([], 1, tl.int32) << (BITS - 2 - 2 * done)
    one, two, three = base + step, base + 2 * step, base + 3 * step
    weights_ptr += first_row * weight_stride
    forced_ptr += first_row * forced_stride
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, N)
    above_one = tl.zeros([ROWS, CHUNK], tl.int32)
    above_two = tl.zeros([ROWS, CHUNK], tl.int32)
    above_three = tl.zeros([ROWS, CHUNK], tl.int32)
    for start in range(first, end, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keys, weights, _ = _load(
            scores_ptr, weights_ptr, forced_ptr, rows, columns, R, N, end, FORCED
        )
        above_one += tl.where(keys >= one[:, None], weights, 0)
        above_two += tl.where(keys >= two[:, None], weights, 0)
        above_three += tl.where(keys >= three[:, None], weights, 0)
    slots = (done + 1) * R + rows
    sums_ptr += slots * 4
    tl.atomic_add(sums_ptr + 1, tl.sum(above_one.to(tl.int64), 1), mask=rows < R)
    tl.atomic_add(sums_ptr + 2, tl.sum(above_two.to(tl.int64), 1), mask=rows < R)
    tl.atomic_add(sums_ptr + 3, tl.sum(above_three.to(tl.int64), 1), mask=rows < R)
    # Every program of the rows stores the same.
    tl.store(bases_ptr + slots, base, mask=rows < R)


@triton.jit(do_not_specialize=["part"])
def _held_kernel(
    scores_ptr, weights_ptr, targets_ptr, forced_ptr, sums_ptr, bases_ptr, held_ptr,
    weight_stride, target_stride, forced_stride, R, N, part,
    BITS: tl.constexpr, FORCED: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program adds the weights of its part of ROWS rows above the threshold and at it."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target = tl.load(targets_ptr + rows * target_stride, mask=rows < R, other=0)
    threshold = _threshold(sums_ptr, bases_ptr, target, rows, R, BITS // 2, BITS)[:, None]
    weights_ptr += first_row * weight_stride
    forced_ptr += first_row * forced_stride
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, N)
    above = tl.zeros([ROWS, CHUNK], tl.int32)
    ties = tl.zeros([ROWS, CHUNK], tl.int32)
    for start in range(first, end, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keys, weights, _ = _load(
            scores_ptr, weights_ptr, forced_ptr, rows, columns, R, N, end, FORCED
        )
        above += tl.where(keys > threshold, weights, 0)
        ties += tl.where(keys == threshold, weights, 0)
    held_ptr += (rows * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(held_ptr, tl.sum(above.to(tl.int64), 1), mask=rows < R)
    tl.store(held_ptr + 1, tl.sum(ties.to(tl.int64), 1), mask=rows < R)


@triton.jit(do_not_specialize=["part"])
def _keep_kernel(
    scores_ptr, weights_ptr, targets_ptr, forced_ptr, sums_ptr, bases_ptr, held_ptr, keep_ptr,
    weight_stride, target_stride, forced_stride, R, N, part,
    BITS: tl.constexpr, FORCED: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    PAD_PARTS: tl.constexpr,
):  # fmt: skip
    """One program keeps what its part of ROWS rows holds above the threshold, and its ties or none.

    Ties share what those above leave, the first ones first: at most one part of a row keeps some of
    them only, see ``_keep_ties_kernel``.
    """
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target = tl.load(targets_ptr + rows * target_stride, mask=rows < R, other=0)
    threshold = _threshold(sums_ptr, bases_ptr, target, rows, R, BITS // 2, BITS)[:, None]
    parts = tl.arange(0, PAD_PARTS)[None, :]
    inside = (rows < R)[:, None]
    held_ptr += (rows[:, None] * tl.num_programs(1) + parts) * 2
    above = tl.load(held_ptr, mask=inside & (parts < tl.num_programs(1)), other=0)
    ties = tl.load(held_ptr + 1, mask=inside & (parts <= tl.program_id(1)), other=0)
    all_ties = (tl.sum(above + ties, 1) < target)[:, None]
    weights_ptr += first_row * weight_stride
    forced_ptr += first_row * forced_stride
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, N)
    for start in range(first, end, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keys, _, forced = _load(
            scores_ptr, weights_ptr, forced_ptr, rows, columns, R, N, end, FORCED
        )
        keep = (keys > threshold) | ((keys == threshold) & all_ties)
        if FORCED:
            keep |= forced != 0
        place = rows.to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(keep_ptr + place, keep.to(tl.int8), mask=inside & (columns < end)[None, :])


@triton.jit(do_not_specialize=["part"])
def _keep_ties_kernel(
    scores_ptr, weights_ptr, targets_ptr, forced_ptr, sums_ptr, bases_ptr, held_ptr, keep_ptr,
    weight_stride, target_stride, forced_stride, R, N, part, num_parts,
    BITS: tl.constexpr, FORCED: tl.constexpr, CHUNK: tl.constexpr, PAD_PARTS: tl.constexpr,
):  # fmt: skip
    """One program keeps the first ties of the part that keeps some of them."""
    row = tl.program_id(0)
    rows = row + tl.arange(0, 1)
    target = tl.load(targets_ptr + row * target_stride)
    threshold = _threshold(
        sums_ptr, bases_ptr, tl.full([1], 0, tl.int64) + target, rows, R, BITS // 2, BITS
    )[:, None]  # fmt: skip
    parts = tl.arange(0, PAD_PARTS)
    held_ptr += (row * num_parts + parts) * 2
    above = tl.load(held_ptr, mask=parts < num_parts, other=0)
    ties = tl.load(held_ptr + 1, mask=parts < num_parts, other=0)
    through = tl.sum(above, 0) + tl.cumsum(ties, 0)
    crosses = (through >= target) & (through - ties < target)
    held = tl.sum(tl.where(crosses, through - ties, 0), 0)
    first = tl.sum(tl.where(crosses, parts, 0), 0) * part
    end = tl.where(tl.sum(crosses.to(tl.int32), 0) > 0, tl.minimum(first + part, N), 0)
    weights_ptr += row.to(tl.int64) * weight_stride
    forced_ptr += row.to(tl.int64) * forced_stride
    for start in range(first, end, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keys, weights, _ = _load(
            scores_ptr, weights_ptr, forced_ptr, rows, columns, R, N, end, FORCED
        )
        tied = (keys == threshold) & (columns < end)[None, :]
        shares = tl.where(tied, weights, 0).to(tl.int64)
        before = held + tl.cumsum(shares, 1) - shares
        place = row.to(tl.int64) * N + columns[None, :]
        tl.store(keep_ptr + place, tl.full([1, CHUNK], 1, tl.int8), mask=tied & (before < target))
        held += tl.sum(tl.sum(shares, 1), 0)


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
    strides = row_stride(weights), row_stride(targets), row_stride(forced)
    rows = 1 if strides[0] or strides[2] else _ROWS
    groups = -(-R // rows)
    part = -(-N // max(1, _PROGRAMS // groups))
    chunk = _CHUNK // rows
    part = -(-part // chunk) * chunk
    grid = groups, -(-N // part)
    device = scores.device
    bits = 8 * scores.element_size()
    sums = torch.zeros(bits // 2 + 1, R, 4, dtype=torch.int64, device=device)
    bases = torch.full((bits // 2 + 1, R), -(1 << bits - 1), dtype=torch.int32, device=device)
    held = torch.empty(R, grid[1], 2, dtype=torch.int64, device=device)
    keep = torch.empty(R, N, dtype=torch.bool, device=device)
    marks = scores if forced is None else forced.view(torch.uint8)
    tensors = scores, weights, targets, marks, sums, bases
    shape = R, N, part
    options = {
        "BITS": bits, "FORCED": forced is not None, "ROWS": rows, "CHUNK": chunk, "num_warps": 8
    }  # fmt: skip
    for done in range(bits // 2):
        _round_kernel[grid](*tensors, *strides, *shape, done, **options)
    _held_kernel[grid](*tensors, held, *strides, *shape, **options)
    outputs = held, keep.view(torch.int8)
    options["PAD_PARTS"] = triton.next_power_of_2(grid[1])
    _keep_kernel[grid](*tensors, *outputs, *strides, *shape, **options)
    del options["ROWS"]
    _keep_ties_kernel[(R,)](*tensors, *outputs, *strides, *shape, grid[1], **options)
    return keep


def row_stride(x: Tensor | None) -> int:
    """Return the distance between rows of (R | 1, N), 0 where all share one."""
    return 0 if x is None or x.shape[0] == 1 else x.shape[1]
