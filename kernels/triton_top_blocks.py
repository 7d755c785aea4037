"""Triton twin of ``top_blocks``: a radix search for each row's threshold instead of a sort."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.triton_split_top_blocks import keep_top_weight_split, row_stride, sort_keys

# Entries that one program holds at once: enough loads in flight to hide the L2's latency. A lane
# sums N / _CHUNK weights in int32, so they may be 2**31 * _CHUNK / N at most.
_CHUNK = 8192
# Fewer long rows than this leave a GPU idle with one program each.
_SPLIT_BELOW = 256


@triton.jit
def _load_keys(scores_ptr, forced_ptr, columns, N, FORCED: tl.constexpr):
    inside = columns < N
    scores = tl.load(scores_ptr + columns, mask=inside, other=0.0)
    forced = tl.load(forced_ptr + columns, mask=inside, other=0) if FORCED else 0
    return sort_keys(scores, forced, FORCED)


# Strides of 0 would be known as multiples of 16, and each thread would take a run of weights; rows
# of scores that do not begin at such a place would then be read in steps.
@triton.jit(do_not_specialize=["weight_stride", "forced_stride"])
def _keep_top_weight_kernel(
    scores_ptr, weights_ptr, targets_ptr, forced_ptr, keep_ptr,
    weight_stride, target_stride, forced_stride, N,
    BITS: tl.constexpr, FORCED: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program keeps the entries of one row."""
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * N
    keep_ptr += row * N
    weights_at, forced_at = row * weight_stride, row * forced_stride
    if ALIGNED:
        weights_at, forced_at = tl.multiple_of(weights_at, 16), tl.multiple_of(forced_at, 16)
    weights_ptr += weights_at
    forced_ptr += forced_at
    target = tl.load(targets_ptr + row * target_stride)
    columns = tl.arange(0, CHUNK)
    # The greatest key whose entries and those above weigh the target, two bits per round.
    step = tl.full([], 1, tl.int32) << (BITS - 2)
    threshold = -2 * step
    for _ in range(BITS // 2):
        one = threshold + step
        two = one + step
        three = two + step
        above_one = tl.zeros([CHUNK], tl.int32)
        above_two = tl.zeros([CHUNK], tl.int32)
        above_three = tl.zeros([CHUNK], tl.int32)
        for start in range(0, N, CHUNK):
            keys = _load_keys(scores_ptr, forced_ptr, start + columns, N, FORCED)
            weights = tl.load(weights_ptr + start + columns, mask=start + columns < N, other=0)
            above_one += tl.where(keys >= one, weights, 0)
            above_two += tl.where(keys >= two, weights, 0)
            above_three += tl.where(keys >= three, weights, 0)
        threshold = tl.where(tl.sum(above_one.to(tl.int64)) >= target, one, threshold)
        threshold = tl.where(tl.sum(above_two.to(tl.int64)) >= target, two, threshold)
        threshold = tl.where(tl.sum(above_three.to(tl.int64)) >= target, three, threshold)
        step = step >> 2
    above = tl.zeros([CHUNK], tl.int32)
    for start in range(0, N, CHUNK):
        keys = _load_keys(scores_ptr, forced_ptr, start + columns, N, FORCED)
        weights = tl.load(weights_ptr + start + columns, mask=start + columns < N, other=0)
        above += tl.where(keys > threshold, weights, 0)
    # Entries at the threshold share what is left, the first ones first.
    held = tl.sum(above.to(tl.int64))
    for start in range(0, N, CHUNK):
        inside = start + columns < N
        keys = _load_keys(scores_ptr, forced_ptr, start + columns, N, FORCED)
        weights = tl.load(weights_ptr + start + columns, mask=inside, other=0).to(tl.int64)
        ties = tl.where(keys == threshold, weights, 0)
        before = held + tl.cumsum(ties, 0) - ties
        keep = (keys > threshold) | ((keys == threshold) & (before < target))
        if FORCED:
            keep |= tl.load(forced_ptr + start + columns, mask=inside, other=0) != 0
        tl.store(keep_ptr + start + columns, keep.to(tl.int8), mask=inside)
        held += tl.sum(ties)


def keep_top_weight_triton(
    scores: Tensor, weights: Tensor, targets: Tensor, forced: Tensor | None = None
) -> Tensor:
    """Keep the best entries of each row; see ``top_blocks.keep_top_weight``."""
    R, N = scores.shape
    scores, weights = scores.contiguous(), weights.to(torch.int32).contiguous()
    targets = (targets.ceil() if targets.is_floating_point() else targets).long().contiguous()
    forced = None if forced is None else forced.contiguous()
    if R < _SPLIT_BELOW and N > _CHUNK:
        return keep_top_weight_split(scores, weights, targets, forced)
    keep = torch.empty(R, N, dtype=torch.bool, device=scores.device)
    chunk = min(_CHUNK, max(64, triton.next_power_of_2(N)))
    _keep_top_weight_kernel[(R,)](
        scores, weights, targets, scores if forced is None else forced.view(torch.uint8),
        keep.view(torch.int8), row_stride(weights), row_stride(targets),
        row_stride(forced), N,
        BITS=8 * scores.element_size(), FORCED=forced is not None, ALIGNED=N % 16 == 0,
        CHUNK=chunk, num_warps=16 if chunk >= 4096 else 4,
    )  # fmt: skip
    return keep
