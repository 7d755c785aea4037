"""Triton twins of ``bit_masks``: one pass over bits instead of several over bool masks."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns handled at once; a longer row takes several rounds of its program.
_CHUNK = 1024


@triton.jit
def _bits_at(bits_ptr, columns, N):
    """Load the bits of some columns of one row: int32, 0 outside."""
    byte = tl.load(bits_ptr + columns // 8, mask=columns < N, other=0).to(tl.int32)
    return (byte >> (columns % 8)) & 1


@triton.jit
def _lists_kernel(
    bits_ptr, counts_ptr, indices_ptr, N, num_bytes, BACKWARDS: tl.constexpr, CHUNK: tl.constexpr
):
    """One program lists the set bits of one row."""
    row = tl.program_id(0).to(tl.int64)
    bits_ptr += row * num_bytes
    indices_ptr += row * N
    others = 0
    if BACKWARDS:
        for start in range(0, N, CHUNK):
            columns = start + tl.arange(0, CHUNK)
            others += tl.sum(tl.where(columns < N - 1, _bits_at(bits_ptr, columns, N), 0), 0)
    kept = 0
    for start in range(0, N, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        keep = _bits_at(bits_ptr, columns, N)
        position = kept + tl.cumsum(keep, 0) - 1
        if BACKWARDS:
            position = tl.where(columns < N - 1, others - 1 - position, others)
        tl.store(indices_ptr + position, columns, mask=keep != 0)
        kept += tl.sum(keep, 0)
    # Readers past the count stay in bounds.
    for start in range(0, N, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        rest = (columns >= kept) & (columns < N)
        tl.store(indices_ptr + columns, tl.zeros_like(columns), mask=rest)
    tl.store(counts_ptr + row, kept)


@triton.jit
def _pack_kernel(mask_ptr, bits_ptr, N, num_bytes, BYTES: tl.constexpr):
    """One program packs BYTES bytes of one row."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    eight = tl.arange(0, 8)
    columns = places[:, None] * 8 + eight[None, :]
    keep = tl.load(mask_ptr + row * N + columns, mask=columns < N, other=0).to(tl.int32)
    byte = tl.sum((keep != 0).to(tl.int32) << eight[None, :], 1)
    tl.store(bits_ptr + row * num_bytes + places, byte.to(tl.uint8), mask=places < num_bytes)


def lists_from_bits_triton(bits: Tensor, N: int, *, backwards: bool) -> tuple[Tensor, Tensor]:
    """Return counts (...) and indices (..., N), both int32; see ``bit_masks.mask_from_bits``."""
    bits = bits.contiguous()
    counts = torch.empty(bits.shape[:-1], dtype=torch.int32, device=bits.device)
    indices = torch.empty(*bits.shape[:-1], N, dtype=torch.int32, device=bits.device)
    if counts.numel():
        chunk = min(triton.next_power_of_2(N), _CHUNK)
        _lists_kernel[(counts.numel(),)](
            bits, counts, indices, N, bits.shape[-1], BACKWARDS=backwards, CHUNK=chunk,
            num_warps=4 if chunk >= 512 else 1,
        )  # fmt: skip
    return counts, indices


def pack_bits_triton(mask: Tensor) -> Tensor:
    """Return (..., ceil(N / 8)) uint8; see ``bit_masks.pack_bits``."""
    mask = mask.contiguous()
    N = mask.shape[-1]
    num_bytes = -(-N // 8)
    bits = torch.empty(*mask.shape[:-1], num_bytes, dtype=torch.uint8, device=mask.device)
    rows = bits.numel() // max(1, num_bytes)
    if bits.numel():
        size = min(128, triton.next_power_of_2(num_bytes))
        _pack_kernel[(rows, triton.cdiv(num_bytes, size))](
            mask.view(torch.uint8), bits, N, num_bytes, BYTES=size, num_warps=1
        )
    return bits
