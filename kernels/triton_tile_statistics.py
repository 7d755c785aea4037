"""Collect what attention kernels measure about their tiles while they attend."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.triton_permute import shared_strides

_SLOTS = 64


@triton.jit
def _collect_kernel(
    parts_ptr, count_ptr, index_ptr, out_ptr, list_stride_b, list_stride_h, H, Nq, Nkv, tiles,
    parts, PAD_PARTS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """One program sums the masses of one query block of one head, used slots only."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lists = (head // H) * list_stride_b + (head % H) * list_stride_h + block
    count = tl.minimum(tl.load(count_ptr + lists), Nkv)
    row = head * Nq + block
    part = tl.arange(0, PAD_PARTS)
    for start in range(0, count, SLOTS):
        slots = start + tl.arange(0, SLOTS)
        inside = slots < count
        mass = tl.zeros([SLOTS], tl.float32)
        for tile in range(0, tiles):
            place = ((row * tiles + tile) * Nkv + slots)[:, None] * parts + part[None, :]
            keep = inside[:, None] & (part < parts)[None, :]
            mass += tl.sum(tl.load(parts_ptr + place, mask=keep, other=0.0), 1)
        target = tl.load(index_ptr + lists * Nkv + slots, mask=inside, other=-1)
        tl.store(out_ptr + row * Nkv + target, mass, mask=(target >= 0) & (target < Nkv))


def dense_stats(parts: Tensor, mask: BlockMask) -> Tensor:
    """Sum masses per block and bring list slots to block ids.

    Args:
        parts: (B, H, query tiles, list slots, parts of a tile) contiguous float32; unused slots
            are ignored; each query block owns the same number of consecutive tiles.
        mask: the lists.

    Returns:
        (B, H, Nq, Nkv) float32, 0 for blocks that are not kept.
    """
    B, H, tiles, _, size = parts.shape
    Nq, Nkv = mask.num_q_blocks, mask.num_kv_blocks
    out = torch.zeros(B, H, Nq, Nkv, device=parts.device)
    _collect_kernel[(Nq, B * H)](
        parts, mask.kv_num_blocks, mask.kv_indices, out, *shared_strides(mask.kv_num_blocks),
        H, Nq, Nkv, tiles // Nq, size,
        PAD_PARTS=triton.next_power_of_2(size), SLOTS=_SLOTS, num_warps=2,
    )  # fmt: skip
    return out
