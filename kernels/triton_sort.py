"""Stable counting sort of tokens by label, per head, without a synchronisation."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class SortConfig:
    """How tokens are split.

    Args:
        tokens: tokens that one program counts and places.
        group: of these, tokens that one step places.
        chunks: chunks that one program sums up in one step.
        labels: labels that one program sums up.
    """

    tokens: int
    group: int
    chunks: int
    labels: int


# Fastest on an H200 of `python -m vidsparse.profiling.tune_parts --heads 40`, 300 and 1000 labels
# together.
SORT = SortConfig(1024, 64, 16, 64)


@triton.jit
def _count_kernel(labels_ptr, counts_ptr, S, K, TOKENS: tl.constexpr, PAD_K: tl.constexpr):
    """One program counts the labels of TOKENS tokens of one head."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tokens = chunk * TOKENS + tl.arange(0, TOKENS)
    # Tokens past the end count in a bin that is not stored.
    labels = tl.load(labels_ptr + head * S + tokens, mask=tokens < S, other=K).to(tl.int32)
    counts = tl.histogram(labels, PAD_K).to(tl.int32)
    bins = tl.arange(0, PAD_K)
    row = (head * tl.num_programs(0) + chunk) * K
    tl.store(counts_ptr + row + bins, counts, mask=bins < K)


@triton.jit
def _sum_chunks_kernel(counts_ptr, totals_ptr, chunks, K, CHUNKS: tl.constexpr,
                       LABELS: tl.constexpr):  # fmt: skip
    """One program turns counts of LABELS labels of one head into how often they came before."""
    labels = tl.program_id(0) * LABELS + tl.arange(0, LABELS)
    head = tl.program_id(1).to(tl.int64)
    before = tl.zeros([LABELS], tl.int32)
    for start in range(0, chunks, CHUNKS):
        rows = start + tl.arange(0, CHUNKS)
        place = (head * chunks + rows)[:, None] * K + labels[None, :]
        keep = (rows < chunks)[:, None] & (labels < K)[None, :]
        counts = tl.load(counts_ptr + place, mask=keep, other=0)
        tl.store(counts_ptr + place, tl.cumsum(counts, 0) - counts + before[None, :], mask=keep)
        before += tl.sum(counts, 0)
    tl.store(totals_ptr + head * K + labels, before, mask=labels < K)


@triton.jit
def _place_kernel(labels_ptr, before_ptr, offsets_ptr, order_ptr, S, K, TOKENS: tl.constexpr,
                  GROUP: tl.constexpr):  # fmt: skip
    """One program places TOKENS tokens of one head, GROUP at a time, and counts them on."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    labels_ptr += head * S
    before_ptr += (head * tl.num_programs(0) + chunk) * K
    offsets_ptr += head * (K + 1)
    order_ptr += head * S
    own = tl.arange(0, GROUP)
    # Of each pair in a group, the lower half counts the earlier of the same label, the upper half
    # itself and the later.
    weight = tl.where(own[:, None] < own[None, :], 1, 1 << 16)
    token = chunk * TOKENS + own
    ahead = tl.load(labels_ptr + token, mask=token < S, other=K)
    for _ in range(0, min(TOKENS, S - chunk * TOKENS), GROUP):
        label = ahead.to(tl.int32)
        ahead = tl.load(labels_ptr + token + GROUP, mask=token + GROUP < S, other=K)
        # Labels out of range would leave the counts.
        inside = (label >= 0) & (label < K)
        before = tl.load(before_ptr + label, mask=inside, other=0)
        first = tl.load(offsets_ptr + label, mask=inside, other=0)
        same = tl.sum(tl.where(label[:, None] == label[None, :], weight, 0), 0)
        before += same & 0xFFFF
        position = first + before
        tl.store(order_ptr + position, token, mask=inside & (position >= 0) & (position < S))
        # The last of its label counts for the next groups.
        tl.store(before_ptr + label, before + 1, mask=inside & (same >> 16 == 1))
        tl.debug_barrier()
        token += GROUP


def sort_by_label_triton(
    labels: Tensor, num_labels: int, config: SortConfig = SORT
) -> tuple[Tensor, Tensor]:
    """Sort tokens by label; see ``permute.sort_by_label``."""
    B, H, S = labels.shape
    labels, K = labels.contiguous(), num_labels
    chunks = triton.cdiv(S, config.tokens)
    counts = labels.new_empty(B * H, chunks, K, dtype=torch.int32)
    pad = triton.next_power_of_2(K + 1)
    _count_kernel[(chunks, B * H)](labels, counts, S, K, TOKENS=config.tokens, PAD_K=pad)
    totals = labels.new_empty(B * H, K, dtype=torch.int32)
    _sum_chunks_kernel[(triton.cdiv(K, config.labels), B * H)](
        counts, totals, chunks, K, CHUNKS=config.chunks, LABELS=config.labels
    )
    offsets = labels.new_zeros(B * H, K + 1, dtype=torch.int32)
    torch.cumsum(totals, -1, dtype=torch.int32, out=offsets[:, 1:])
    order = labels.new_empty(B, H, S, dtype=torch.int32)
    _place_kernel[(chunks, B * H)](
        labels, counts, offsets, order, S, K, TOKENS=config.tokens, GROUP=config.group, num_warps=1
    )
    return order, offsets.view(B, H, K + 1)
