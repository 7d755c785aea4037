"""Stable counting sort of tokens by label, per head, without a synchronisation."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens that one program counts and sorts.
_TOKENS = 1024


@triton.jit
def _count_kernel(labels_ptr, counts_ptr, S, K, TOKENS: tl.constexpr, PAD_K: tl.constexpr):
    """One program counts the labels of TOKENS tokens of one head."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tokens = chunk * TOKENS + tl.arange(0, TOKENS)
    # Tokens past the end count in a bin that is not stored.
    labels = tl.load(labels_ptr + head * S + tokens, mask=tokens < S, other=K).to(tl.int32)
    counts = tl.histogram(labels, PAD_K)
    bins = tl.arange(0, PAD_K)
    row = head * tl.num_programs(0) + chunk
    tl.store(counts_ptr + row * K + bins, counts.to(tl.int32), mask=bins < K)


@triton.jit
def _place_kernel(labels_ptr, first_ptr, order_ptr, S, K, TOKENS: tl.constexpr):
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
    position = first + tl.arange(0, TOKENS)
    inside &= (position >= 0) & (position < S)
    token = chunk * TOKENS + keys % TOKENS
    tl.store(order_ptr + head * S + position, token, mask=inside)


def sort_by_label_triton(labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """Sort tokens by label; see ``permute.sort_by_label``."""
    B, H, S = labels.shape
    labels = labels.contiguous()
    chunks = triton.cdiv(S, _TOKENS)
    counts = torch.empty(B * H, chunks, num_labels, dtype=torch.int32, device=labels.device)
    pad = triton.next_power_of_2(num_labels + 1)
    _count_kernel[(chunks, B * H)](labels, counts, S, num_labels, TOKENS=_TOKENS, PAD_K=pad)
    offsets = torch.zeros(B * H, num_labels + 1, dtype=torch.int32, device=labels.device)
    torch.cumsum(counts.sum(1, dtype=torch.int32), -1, dtype=torch.int32, out=offsets[:, 1:])
    # Where a label's tokens of this chunk go, less where they stand in the sorted chunk.
    before = torch.cumsum(counts, 1, dtype=torch.int32) - counts
    inside = torch.cumsum(counts, 2, dtype=torch.int32) - counts
    first = offsets[:, None, :-1] + before - inside
    order = torch.empty(B, H, S, dtype=torch.int32, device=labels.device)
    _place_kernel[(chunks, B * H)](labels, first, order, S, num_labels, TOKENS=_TOKENS)
    return order, offsets.view(B, H, num_labels + 1)
