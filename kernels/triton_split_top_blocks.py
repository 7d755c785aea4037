"""``top_blocks`` for a few long rows: many programs share each row's radix search."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs that keep a GPU busy.
_PROGRAMS = 512
# Entries of a program are a multiple of what its widest step takes at once.
_UNIT = 4096
# Four bits of the 32-bit threshold per round.
_ROUNDS = 8


@triton.jit
def _load_keys(scores_ptr, columns, end):
    """Load float32 as int32 of the same order; both zeros are equal."""
    scores = tl.load(scores_ptr + columns, mask=columns < end, other=0.0)
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _threshold(sums_ptr, bases_ptr, target, row, R, done):
    """Return the threshold's bits that ``done`` rounds know, the others 0."""
    digits = tl.arange(0, 16)
    sums = tl.load(sums_ptr + (done * R + row) * 16 + digits)
    digit = tl.sum(((sums >= target) & (digits > 0)).to(tl.int32), 0)
    digit = tl.where(done > 0, digit, 0)
    return tl.load(bases_ptr + done * R + row) + (digit << tl.minimum(32 - 4 * done, 28))


@triton.jit(do_not_specialize=["done"])
def _round_kernel(
    scores_ptr, weights_ptr, targets_ptr, sums_ptr, bases_ptr, weight_stride, target_stride,
    R, N, part, done, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program adds the weights of its part of a row at and above each next digit."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row * target_stride)
    base = _threshold(sums_ptr, bases_ptr, target, row, R, done)
    digits = tl.arange(0, 16)
    candidates = base + (digits << (28 - 4 * done))
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, N)
    above = tl.zeros([CHUNK, 16], tl.int32)
    for start in range(first, end, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keys = _load_keys(scores_ptr + row * N, columns, end)
        weights = tl.load(weights_ptr + row * weight_stride + columns, mask=columns < end, other=0)
        above += tl.where(keys[:, None] >= candidates[None, :], weights[:, None], 0)
    slot = (done + 1) * R + row
    tl.atomic_add(sums_ptr + slot * 16 + digits, tl.sum(above.to(tl.int64), 0))
    # Every program of the row stores the same.
    tl.store(bases_ptr + slot, base)


@triton.jit
def _held_kernel(
    scores_ptr, weights_ptr, targets_ptr, sums_ptr, bases_ptr, held_ptr,
    weight_stride, target_stride, R, N, part, ROUNDS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program adds the weights of its part above the threshold and at it."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row * target_stride)
    threshold = _threshold(sums_ptr, bases_ptr, target, row, R, ROUNDS)
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, N)
    above = tl.zeros([CHUNK], tl.int32)
    ties = tl.zeros([CHUNK], tl.int32)
    for start in range(first, end, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keys = _load_keys(scores_ptr + row * N, columns, end)
        weights = tl.load(weights_ptr + row * weight_stride + columns, mask=columns < end, other=0)
        above += tl.where(keys > threshold, weights, 0)
        ties += tl.where(keys == threshold, weights, 0)
    held_ptr += (row * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(held_ptr, tl.sum(above.to(tl.int64), 0))
    tl.store(held_ptr + 1, tl.sum(ties.to(tl.int64), 0))


@triton.jit
def _keep_kernel(
    scores_ptr, weights_ptr, targets_ptr, sums_ptr, bases_ptr, held_ptr, keep_ptr,
    weight_stride, target_stride, R, N, part,
    ROUNDS: tl.constexpr, CHUNK: tl.constexpr, PAD_PARTS: tl.constexpr,
):  # fmt: skip
    """One program keeps the entries of its part."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row * target_stride)
    threshold = _threshold(sums_ptr, bases_ptr, target, row, R, ROUNDS)
    # Entries at the threshold share what those above leave, the first ones first.
    parts = tl.arange(0, PAD_PARTS)
    held_ptr += row * tl.num_programs(1) * 2
    above = tl.load(held_ptr + 2 * parts, mask=parts < tl.num_programs(1), other=0)
    ahead = tl.load(held_ptr + 2 * parts + 1, mask=parts < tl.program_id(1), other=0)
    held = tl.sum(above, 0) + tl.sum(ahead, 0)
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, N)
    for start in range(first, end, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keys = _load_keys(scores_ptr + row * N, columns, end)
        weights = tl.load(weights_ptr + row * weight_stride + columns, mask=columns < end, other=0)
        ties = tl.where(keys == threshold, weights, 0).to(tl.int64)
        before = held + tl.cumsum(ties, 0) - ties
        keep = (keys > threshold) | ((keys == threshold) & (before < target))
        tl.store(keep_ptr + row * N + columns, keep.to(tl.int8), mask=columns < end)
        held += tl.sum(ties, 0)


def keep_top_weight_split(scores: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
    """Keep the best entries of each row; see ``top_blocks.keep_top_weight``.

    Args:
        scores: (R, N) float32, contiguous.
        weights: (R | 1, N) int32, contiguous.
        targets: (R | 1, 1) int64, contiguous.
    """
    R, N = scores.shape
    part = -(-N // max(1, _PROGRAMS // R))
    part = -(-part // _UNIT) * _UNIT
    grid = R, -(-N // part)
    device = scores.device
    sums = torch.zeros(_ROUNDS + 1, R, 16, dtype=torch.int64, device=device)
    bases = torch.full((_ROUNDS + 1, R), -(2**31), dtype=torch.int32, device=device)
    held = torch.empty(*grid, 2, dtype=torch.int64, device=device)
    keep = torch.empty(R, N, dtype=torch.bool, device=device)
    tensors = scores, weights, targets, sums, bases
    strides = 0 if weights.shape[0] == 1 else N, 0 if targets.shape[0] == 1 else 1
    shape = R, N, part
    for done in range(_ROUNDS):
        _round_kernel[grid](*tensors, *strides, *shape, done, CHUNK=1024, num_warps=8)
    _held_kernel[grid](*tensors, held, *strides, *shape, ROUNDS=_ROUNDS, CHUNK=_UNIT, num_warps=8)
    _keep_kernel[grid](
        *tensors, held, keep.view(torch.int8), *strides, *shape,
        ROUNDS=_ROUNDS, CHUNK=_UNIT, PAD_PARTS=triton.next_power_of_2(grid[1]), num_warps=8,
    )  # fmt: skip
    return keep
