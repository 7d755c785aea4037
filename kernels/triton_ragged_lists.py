"""Lists of key chunks for masks with variable blocks, built on the device.

Selected neighbouring blocks form runs of consecutive keys. Each run is cut into chunks of CHUNK
keys from its start; what remains is one partial chunk. An entry packs ``first_key << 8 | keys``.
A row's full chunks come first, its partial ones last. On request the start of each run is first
cut into wide tiles, which are listed apart.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.ragged_block_mask import RaggedBlockMask


class ChunkLists(NamedTuple):
    """Key chunks of each query block.

    Args:
        entries: (B, H, Nq, capacity) int32.
        num_full: (B, H, Nq) int32 entries of ``chunk`` keys.
        num_chunks: (B, H, Nq) int32 entries in all.
        lengths: (B, H, Nq, capacity) uint8 keys of each entry, 0 up to a multiple of 8 entries.
        chunk: keys of a full entry.
        wide: (B, H, Nq, capacity) int32 first keys of wide tiles.
        num_wide: (B, H, Nq) int32 wide tiles.
    """

    entries: Tensor
    num_full: Tensor
    num_chunks: Tensor
    lengths: Tensor
    chunk: int
    wide: Tensor
    num_wide: Tensor


class QueryTiles(NamedTuple):
    """Query tiles of each head, each within one query block.

    Args:
        block: (B, H, P) int32 query block.
        first_row: (B, H, P) int32 first query; the block's end for unused tiles.
        end_row: (B, H, P) int32 end of the block.
    """

    block: Tensor
    first_row: Tensor
    end_row: Tensor


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _chunk_lists_kernel(
    mask_ptr, offsets_ptr, entries_ptr, num_full_ptr, num_chunks_ptr, lengths_ptr, wide_ptr,
    num_wide_ptr,
    Nq, N, S, capacity, wide_capacity,
    CHUNK: tl.constexpr, WIDE: tl.constexpr, PAD_N: tl.constexpr,
):  # fmt: skip
    """One program lists the chunks of one query block."""
    row = tl.program_id(0).to(tl.int64)
    offsets_ptr += (row // Nq) * (N + 1)
    j = tl.arange(0, PAD_N)
    inside = j < N
    # Offsets out of range would make lists that leave the tensors.
    first = tl.load(offsets_ptr + j, mask=inside, other=0)
    end = tl.load(offsets_ptr + j + 1, mask=inside, other=0)
    first = tl.minimum(tl.maximum(first, 0), S)
    end = tl.minimum(tl.maximum(end, first), S)
    keep = tl.load(mask_ptr + row * N + j, mask=inside, other=0) != 0
    # Empty blocks join their neighbours: they must not break a run in two.
    keep = inside & (keep | (first == end))
    before = tl.load(mask_ptr + row * N + j - 1, mask=inside & (j > 0), other=0) != 0
    last_first = tl.load(offsets_ptr + j - 1, mask=inside & (j > 0), other=-1)
    before = (j > 0) & (before | (last_first == first))
    after = tl.load(mask_ptr + row * N + j + 1, mask=j + 1 < N, other=0) != 0
    next_end = tl.load(offsets_ptr + j + 2, mask=j + 1 < N, other=-1)
    after = (j + 1 < N) & (after | (next_end == end))
    # Offsets ascend, so the largest start so far is the start of the current run.
    start = tl.associative_scan(tl.where(keep & ~before, first, 0), 0, _larger)
    length = tl.where(keep & ~after, end - start, 0)
    if WIDE:
        wide = length // WIDE
        target = wide_ptr + row * wide_capacity + tl.cumsum(wide, 0) - wide
        for step in range(0, tl.max(wide, 0)):
            tl.store(target + step, start + step * WIDE, mask=step < wide)
        tl.store(num_wide_ptr + row, tl.sum(wide, 0))
        start += wide * WIDE
        length -= wide * WIDE
    full, partial = length // CHUNK, ((length % CHUNK) > 0).to(tl.int32)
    num_full, num_partial = tl.sum(full, 0), tl.sum(partial, 0)
    entries_ptr += row * capacity
    lengths_ptr += row * capacity
    place = tl.cumsum(full, 0) - full
    for step in range(0, tl.max(full, 0)):
        entry = ((start + step * CHUNK) << 8) | CHUNK
        tl.store(entries_ptr + place + step, entry, mask=step < full)
        tl.store(lengths_ptr + place + step, CHUNK, mask=step < full)
    place = num_full + tl.cumsum(partial, 0) - partial
    entry = ((start + full * CHUNK) << 8) | (length % CHUNK)
    tl.store(entries_ptr + place, entry, mask=partial > 0)
    tl.store(lengths_ptr + place, (length % CHUNK).to(tl.uint8), mask=partial > 0)
    rest = num_full + num_partial + tl.arange(0, 8)
    tl.store(lengths_ptr + rest, 0, mask=rest < (num_full + num_partial + 7) // 8 * 8)
    tl.store(num_full_ptr + row, num_full)
    tl.store(num_chunks_ptr + row, num_full + num_partial)


def chunk_lists(mask: RaggedBlockMask, chunk: int, *, wide: int = 0) -> ChunkLists:
    """List the key chunks of every query block, without a synchronisation.

    Args:
        mask: kept blocks.
        chunk: keys per chunk, at most 255.
        wide: keys per wide tile, a multiple of ``chunk``; 0 cuts everything into chunks.
    """
    kept = mask.mask.contiguous()
    lead = torch.broadcast_shapes(kept.shape[:2], mask.kv_offsets.shape[:2])
    Nq, N = kept.shape[2:]
    kept = kept.expand(*lead, Nq, N).contiguous()
    offsets = mask.kv_offsets.expand(*lead, N + 1).contiguous()
    runs = (N + 1) // 2
    capacity = mask.seq_kv // chunk + runs
    if wide:
        capacity = min(capacity, runs * (wide // chunk))
    capacity = -(-capacity // 8) * 8
    wide_capacity = mask.seq_kv // wide if wide else 0
    lengths = torch.empty(*lead, Nq, capacity, dtype=torch.uint8, device=mask.device)
    entries = torch.empty(*lead, Nq, capacity, dtype=torch.int32, device=mask.device)
    wide_tiles = torch.empty(*lead, Nq, wide_capacity, dtype=torch.int32, device=mask.device)
    num_full, num_chunks, num_wide = torch.empty(
        3, *lead, Nq, dtype=torch.int32, device=mask.device
    )
    pad = triton.next_power_of_2(N)
    _chunk_lists_kernel[(num_full.numel(),)](
        kept.view(torch.uint8), offsets, entries, num_full, num_chunks, lengths, wide_tiles,
        num_wide, Nq, N, mask.seq_kv, capacity, wide_capacity,
        CHUNK=chunk, WIDE=wide, PAD_N=pad, num_warps=4 if pad >= 512 else 1,
    )  # fmt: skip
    return ChunkLists(entries, num_full, num_chunks, lengths, chunk, wide_tiles, num_wide)


def query_tiles(q_offsets: Tensor, seq_q: int, rows: int) -> QueryTiles:
    """Cut every query block into tiles of ``rows`` queries, without a synchronisation.

    Args:
        q_offsets: (B, H, Nq + 1) int32.
        seq_q: number of queries.
        rows: queries per tile.

    Returns:
        ceil(seq_q / rows) + Nq tiles per head, as many as blocks of any sizes can need.
    """
    Nq = q_offsets.shape[-1] - 1
    first, end = q_offsets[..., :-1].contiguous(), q_offsets[..., 1:].contiguous()
    tiles = (end - first + rows - 1) // rows
    ends = torch.cumsum(tiles, -1, dtype=torch.int32)
    items = torch.arange(-(-seq_q // rows) + Nq, dtype=torch.int32, device=q_offsets.device)
    items = items.expand(*ends.shape[:-1], -1).contiguous()
    block = torch.searchsorted(ends, items, right=True, out_int32=True).clamp_(max=Nq - 1)
    index = block.long()
    first_row = first.gather(-1, index) + (items - (ends - tiles).gather(-1, index)) * rows
    end_row = end.gather(-1, index)
    return QueryTiles(block, torch.minimum(first_row, end_row), end_row)


@triton.jit
def _ordered_tiles_kernel(
    offsets_ptr, num_wide_ptr, num_chunks_ptr, block_ptr, first_ptr, end_ptr, Nq, S, tiles,
    BOXES: tl.constexpr, ROWS: tl.constexpr, PAD_N: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """One program lists the query tiles of one head, those with most keys first."""
    head = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, PAD_N)
    chunks = tl.load(num_chunks_ptr + head * Nq + i, mask=i < Nq, other=0)
    work = tl.load(num_wide_ptr + head * Nq + i, mask=i < Nq, other=0)
    work = tl.where(i < Nq, work + (chunks + BOXES - 1) // BOXES, -1)
    # Work and block share one key: sorting it orders by work, then by falling block id.
    keys = tl.sort((work.to(tl.int64) << 32) | i.to(tl.int64), descending=True)
    block = (keys & 0xFFFFFFFF).to(tl.int32)
    inside = block < Nq
    offsets_ptr += head * (Nq + 1)
    first = tl.load(offsets_ptr + block, mask=inside, other=0)
    first = tl.minimum(tl.maximum(first, 0), S)
    end = tl.load(offsets_ptr + block + 1, mask=inside, other=0)
    end = tl.minimum(tl.maximum(end, first), S)
    own = (end - first + ROWS - 1) // ROWS
    place = tl.cumsum(own, 0) - own
    base = head * tiles
    for step in range(0, tl.max(own, 0)):
        target = base + place + step
        keep = (step < own) & (place + step < tiles)
        tl.store(block_ptr + target, block, mask=keep)
        tl.store(first_ptr + target, first + step * ROWS, mask=keep)
        tl.store(end_ptr + target, end, mask=keep)
    zero = tl.zeros([FILL], tl.int32)
    for start in range(tl.sum(own, 0), tiles, FILL):
        rest = start + tl.arange(0, FILL)
        tl.store(block_ptr + base + rest, zero, mask=rest < tiles)
        tl.store(first_ptr + base + rest, zero, mask=rest < tiles)
        tl.store(end_ptr + base + rest, zero, mask=rest < tiles)


def ordered_query_tiles(
    q_offsets: Tensor, lists: ChunkLists, seq_q: int, rows: int, boxes: int
) -> QueryTiles:
    """Do as ``query_tiles``, longest lists first within a head, in one launch.

    Args:
        q_offsets: (B, H, Nq + 1) int32, contiguous.
        lists: chunk lists with the same leading dimensions.
        seq_q: number of queries.
        rows: queries per tile.
        boxes: chunks per step of the kernel.
    """
    B, H, Nq = lists.num_chunks.shape
    tiles = -(-seq_q // rows) + Nq
    block, first, end = torch.empty(3, B, H, tiles, dtype=torch.int32, device=q_offsets.device)
    pad = triton.next_power_of_2(Nq)
    _ordered_tiles_kernel[(B * H,)](
        q_offsets, lists.num_wide, lists.num_chunks, block, first, end, Nq, seq_q, tiles,
        BOXES=boxes, ROWS=rows, PAD_N=pad, FILL=256, num_warps=4 if pad >= 256 else 1,
    )  # fmt: skip
    return QueryTiles(block, first, end)
