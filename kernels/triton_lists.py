"""Triton twin of ``compact_lists``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns handled at once; a longer row takes several rounds of its program.
_CHUNK = 1024


@triton.jit
def _compact_lists_kernel(mask_ptr, counts_ptr, indices_ptr, N, CHUNK: tl.constexpr):  # noqa: ANN001, ANN202
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
