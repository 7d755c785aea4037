"""Triton twin of ``compact_lists``."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns handled at once; a longer row takes several rounds of its program.
_CHUNK = 1024
# Query blocks that one program can sort; longer sequences are launched in natural order.
_MAX_SORT = 4096


@triton.jit
def _compact_lists_kernel(mask_ptr, counts_ptr, indices_ptr, N, CHUNK: tl.constexpr):
    """One program lists the True columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    kept = 0
    for start in range(0, N, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keep = tl.load(mask_ptr + row * N + columns, mask=columns < N, other=0).to(tl.int32)
        position = kept + tl.cumsum(keep, 0) - 1
        tl.store(indices_ptr + row * N + position, columns, mask=keep != 0)
        kept += tl.sum(keep, 0)
    # Readers past the count stay in bounds.
    for start in range(0, N, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        rest = (columns >= kept) & (columns < N)
        tl.store(indices_ptr + row * N + columns, tl.zeros_like(columns), mask=rest)
    tl.store(counts_ptr + row, kept)


def compact_lists_triton(mask: Tensor) -> tuple[Tensor, Tensor]:
    """List the True columns of each row; see ``compact_lists.compact_lists``."""
    mask = mask.contiguous()
    N = mask.shape[-1]
    counts = torch.empty(mask.shape[:-1], dtype=torch.int32, device=mask.device)
    indices = torch.empty(mask.shape, dtype=torch.int32, device=mask.device)
    if counts.numel() and N:
        chunk = min(triton.next_power_of_2(N), _CHUNK)
        warps = 4 if chunk >= 512 else 1
        _compact_lists_kernel[(counts.numel(),)](
            mask.view(torch.uint8), counts, indices, N, CHUNK=chunk, num_warps=warps
        )
    return counts, indices


@triton.jit
def _launch_order_kernel(counts_ptr, order_ptr, stride_h, N, tiles_per_block, PAD_N: tl.constexpr):
    """One program orders the blocks of one head by falling count."""
    head = tl.program_id(0)
    blocks = tl.arange(0, PAD_N)
    counts = tl.load(counts_ptr + head * stride_h + blocks, mask=blocks < N, other=-1)
    # Count and block share one key: sorting it orders by count, then by falling block id.
    keys = tl.sort((counts.to(tl.int64) << 32) | blocks.to(tl.int64), descending=True)
    ordered = (keys & 0xFFFFFFFF).to(tl.int32)
    target = order_ptr + (head * N + blocks) * tiles_per_block
    for tile in range(tiles_per_block):
        item = (head * N + ordered) * tiles_per_block + tile
        tl.store(target + tile, item, mask=blocks < N)


def launch_order(counts: Tensor, heads: int, stride_h: int, tiles_per_block: int) -> Tensor:
    """Order query tiles head by head, longest first within a head.

    Heads in sequence keep one head's keys in L2; longest first keeps the end of a launch short.

    Args:
        counts: int32 counts, N of each head ``stride_h`` apart (0: shared by all heads).
        heads: number of heads.
        stride_h: distance between heads in ``counts``.
        tiles_per_block: tiles that share one list.

    Returns:
        (heads * N * tiles_per_block,) int32 tile ids.
    """
    N = counts.shape[-1]
    order = torch.empty(heads * N * tiles_per_block, dtype=torch.int32, device=counts.device)
    pad = triton.next_power_of_2(N)
    if pad > _MAX_SORT:
        return torch.arange(len(order), dtype=torch.int32, device=counts.device)
    _launch_order_kernel[(heads,)](
        counts, order, stride_h, N, tiles_per_block, PAD_N=pad, num_warps=4 if pad >= 256 else 1
    )
    return order
