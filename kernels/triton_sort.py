"""Stable counting sort of tokens by label, per head, without a synchronisation."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens that one program counts and sorts.
_TOKENS = 1024
# Chunks and labels that one program sums up in one step.
_CHUNKS, _LABELS = 16, 64


@triton.jit
def _count_kernel(labels_ptr, counts_ptr, inside_ptr, S, K, TOKENS: tl.constexpr,
                  PAD_K: tl.constexpr):  # fmt: skip
    """One program counts the labels of TOKENS tokens of one head."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tokens = chunk * TOKENS + tl.arange(0, TOKENS)
    # Tokens past the end count in a bin that is not stored.
    labels = tl.load(labels_ptr + head * S + tokens, mask=tokens < S, other=K).to(tl.int32)
    counts = tl.histogram(labels, PAD_K).to(tl.int32)
    bins = tl.arange(0, PAD_K)
    row = (head * tl.num_programs(0) + chunk) * K
    tl.store(counts_ptr + row + bins, counts, mask=bins < K)
    tl.store(inside_ptr + row + bins, tl.cumsum(counts, 0) - counts, mask=bins < K)


@triton.jit
def _sum_chunks_kernel(counts_ptr, first_ptr, totals_ptr, chunks, K, CHUNKS: tl.constexpr,
                       LABELS: tl.constexpr):  # fmt: skip
    """One program sums up how often LABELS labels of one head come before each chunk.

    ``first_ptr`` holds where a label stands in its sorted chunk; what came before is added, that
    taken off: added to a place in the sorted chunk it gives the place among all of a label.
    """
    labels = tl.program_id(0) * LABELS + tl.arange(0, LABELS)
    head = tl.program_id(1).to(tl.int64)
    before = tl.zeros([LABELS], tl.int32)
    for start in range(0, chunks, CHUNKS):
        rows = start + tl.arange(0, CHUNKS)
        place = (head * chunks + rows)[:, None] * K + labels[None, :]
        keep = (rows < chunks)[:, None] & (labels < K)[None, :]
        counts = tl.load(counts_ptr + place, mask=keep, other=0)
        inside = tl.load(first_ptr + place, mask=keep, other=0)
        earlier = tl.cumsum(counts, 0) - counts + before[None, :]
        tl.store(first_ptr + place, earlier - inside, mask=keep)
        before += tl.sum(counts, 0)
    tl.store(totals_ptr + head * K + labels, before, mask=labels < K)


@triton.jit
def _place_kernel(labels_ptr, first_ptr, offsets_ptr, order_ptr, S, K, TOKENS: tl.constexpr):
    """One program places TOKENS tokens of one head."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tokens = chunk * TOKENS + tl.arange(0, TOKENS)
    labels = tl.load(labels_ptr + head * S + tokens, mask=tokens < S, other=K).to(tl.int32)
    # Label and place in the chunk share one key: sorting it is a stable sort by label.
    keys = tl.sort(labels * TOKENS + tl.arange(0, TOKENS))
    labels = keys // TOKENS
    inside = labels < K
    row = head * tl.num_programs(0) + chunk
    first = tl.load(first_ptr + row * K + labels, mask=inside, other=0)
    first += tl.load(offsets_ptr + head * (K + 1) + labels, mask=inside, other=0)
    position = first + tl.arange(0, TOKENS)
    inside &= (position >= 0) & (position < S)
    token = chunk * TOKENS + keys % TOKENS
    tl.store(order_ptr + head * S + position, token, mask=inside)


def sort_by_label_triton(labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """Sort tokens by label; see ``permute.sort_by_label``."""
    B, H, S = labels.shape
    labels, K = labels.contiguous(), num_labels
    chunks = triton.cdiv(S, _TOKENS)
    counts, first = (labels.new_empty(B * H, chunks, K, dtype=torch.int32) for _ in range(2))
    pad = triton.next_power_of_2(K + 1)
    _count_kernel[(chunks, B * H)](labels, counts, first, S, K, TOKENS=_TOKENS, PAD_K=pad)
    totals = labels.new_empty(B * H, K, dtype=torch.int32)
    _sum_chunks_kernel[(triton.cdiv(K, _LABELS), B * H)](
        counts, first, totals, chunks, K, CHUNKS=_CHUNKS, LABELS=_LABELS
    )
    offsets = labels.new_zeros(B * H, K + 1, dtype=torch.int32)
    torch.cumsum(totals, -1, dtype=torch.int32, out=offsets[:, 1:])
    order = labels.new_empty(B, H, S, dtype=torch.int32)
    _place_kernel[(chunks, B * H)](labels, first, offsets, order, S, K, TOKENS=_TOKENS)
    return order, offsets.view(B, H, K + 1)
