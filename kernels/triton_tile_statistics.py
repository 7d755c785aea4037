"""Collect what attention kernels measure about their tiles while they attend."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.running_statistics import RunningStat, empty_value
from vidsparse.kernels.triton_permute import shared_strides

_SLOTS = 64


@triton.jit
def _collect_kernel(
    parts_ptr, count_ptr, index_ptr, out_ptr, list_stride_b, list_stride_h, H, Nq, Nkv, tiles,
    parts, MAX: tl.constexpr, PAD_PARTS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """One program joins the statistics of one query block of one head, used slots only."""
    EMPTY: tl.constexpr = float("-inf") if MAX else 0.0
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lists = (head // H) * list_stride_b + (head % H) * list_stride_h + block
    count = tl.minimum(tl.load(count_ptr + lists), Nkv)
    row = head * Nq + block
    part = tl.arange(0, PAD_PARTS)
    for start in range(0, count, SLOTS):
        slots = start + tl.arange(0, SLOTS)
        inside = slots < count
        value = tl.full([SLOTS], EMPTY, tl.float32)
        for tile in range(0, tiles):
            place = ((row * tiles + tile) * Nkv + slots)[:, None] * parts + part[None, :]
            keep = inside[:, None] & (part < parts)[None, :]
            loaded = tl.load(parts_ptr + place, mask=keep, other=EMPTY)
            value = tl.maximum(value, tl.max(loaded, 1)) if MAX else value + tl.sum(loaded, 1)
        target = tl.load(index_ptr + lists * Nkv + slots, mask=inside, other=-1)
        tl.store(out_ptr + row * Nkv + target, value, mask=(target >= 0) & (target < Nkv))


def stats_kind(stats_lse: Tensor | None, running: RunningStat | None) -> int:
    """Return the kernels' number of what was asked for; 0 for nothing."""
    if running is None:
        return int(stats_lse is not None)
    return {RunningStat.MAX: 2, RunningStat.MASS: 3}[running]


def dense_stats(parts: Tensor, mask: BlockMask, running: RunningStat | None) -> Tensor:
    """Join statistics per block and bring list slots to block ids.

    Args:
        parts: (B, H, query tiles, list slots, parts of a tile) contiguous float32; unused slots
            are ignored; each query block owns the same number of consecutive tiles.
        mask: the lists.
        running: which statistic; None for masses against a given LSE. Maxima are joined by their
            maximum, masses by their sum.

    Returns:
        (B, H, Nq, Nkv) float32; blocks that are not kept hold 0, or -inf among maxima.
    """
    B, H, tiles, _, size = parts.shape
    Nq, Nkv = mask.num_q_blocks, mask.num_kv_blocks
    empty = 0.0 if running is None else empty_value(running)
    out = torch.full((B, H, Nq, Nkv), empty, dtype=torch.float32, device=parts.device)
    _collect_kernel[(Nq, B * H)](
        parts, mask.kv_num_blocks, mask.kv_indices, out, *shared_strides(mask.kv_num_blocks),
        H, Nq, Nkv, tiles // Nq, size,
        MAX=running is RunningStat.MAX, PAD_PARTS=triton.next_power_of_2(size), SLOTS=_SLOTS,
        num_warps=2,
    )  # fmt: skip
    return out
