"""Triton twin of ``kmeans``: assignment as a matrix product, update as sums over sorted tokens."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.launch import padded_head_size
from vidsparse.kernels.triton_attention import load_rows
from vidsparse.kernels.triton_sort import sort_by_label_triton

_ASSIGN_TOKENS = 128
_ASSIGN_CLUSTERS = 64
_UPDATE_TOKENS = 64


@triton.jit
def _assign_kernel(
    x_ptr, c_ptr, half_norm_ptr, labels_ptr, x_stride_b, x_stride_h, x_stride_s, H, S, K, D,
    TOKENS: tl.constexpr, CLUSTERS: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One program finds the nearest centroid of TOKENS tokens of one head."""
    head = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    x_ptr += (head // H) * x_stride_b + (head % H) * x_stride_h
    x = load_rows(x_ptr, tokens, x_stride_s, tokens < S, D, PAD_D, EVEN_D)
    best = tl.full([TOKENS, CLUSTERS], float("-inf"), tl.float32)
    best_step = tl.zeros([TOKENS, CLUSTERS], tl.int32)
    columns = tl.arange(0, CLUSTERS)
    for start in tl.range(0, K, CLUSTERS, num_stages=STAGES):
        inside = start + columns < K
        c = load_rows(c_ptr + head * K * D, start + columns, D, inside, D, PAD_D, EVEN_D)
        half = tl.load(half_norm_ptr + head * K + start + columns, mask=inside, other=float("inf"))
        # The nearest centroid has the largest x.c - |c|^2 / 2.
        score = tl.dot(x, c.T, input_precision="ieee") - half[None, :]
        better = score > best
        best = tl.where(better, score, best)
        best_step = tl.where(better, start, best_step)
    # One reduction at the end; among equals the lowest cluster wins.
    top = tl.max(best, 1)
    cluster = tl.where(best == top[:, None], best_step + columns[None, :], 2147483647)
    label = tl.minimum(tl.min(cluster, 1), K - 1)
    tl.store(labels_ptr + head * S + tokens, label, mask=tokens < S)


@triton.jit
def _update_kernel(
    x_ptr, order_ptr, offsets_ptr, old_ptr, new_ptr, x_stride_b, x_stride_h, x_stride_s,
    H, S, K, D, TOKENS: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """One program averages the tokens of one cluster of one head, in a fixed order."""
    cluster, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x_ptr += (head // H) * x_stride_b + (head % H) * x_stride_h
    first = tl.load(offsets_ptr + head * (K + 1) + cluster)
    last = tl.load(offsets_ptr + head * (K + 1) + cluster + 1)
    total = tl.zeros([TOKENS, PAD_D], tl.float32)
    for start in range(first, last, TOKENS):
        position = start + tl.arange(0, TOKENS)
        inside = position < last
        token = tl.load(order_ptr + head * S + position, mask=inside, other=0)
        total += load_rows(x_ptr, token, x_stride_s, inside, D, PAD_D, EVEN_D).to(tl.float32)
    columns = tl.arange(0, PAD_D)
    target = (head * K + cluster) * D + columns
    old = tl.load(old_ptr + target, mask=columns < D, other=0.0)
    mean = tl.sum(total, 0) / tl.maximum(last - first, 1).to(tl.float32)
    tl.store(new_ptr + target, tl.where(last > first, mean, old), mask=columns < D)


def kmeans_triton(x: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, centroids and sizes; see ``kmeans.kmeans``."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    centroids = centroids.contiguous()
    labels = assign_triton(x, centroids)
    sorted_tokens = sort_by_label_triton(labels, centroids.shape[2])
    for step in range(iterations):
        if step:
            labels = assign_triton(x, centroids)
            sorted_tokens = sort_by_label_triton(labels, centroids.shape[2])
        centroids = update_triton(x, *sorted_tokens, centroids)
    return labels, centroids, sorted_tokens[1].diff()


def assign_triton(x: Tensor, centroids: Tensor) -> Tensor:
    """Return the (B, H, S) int32 nearest centroid of each token."""
    B, H, S, D = x.shape
    K = centroids.shape[2]
    # Tensor cores take the tokens' dtype; norms come from the rounded centroids too.
    rounded = centroids.to(x.dtype)
    half_norms = rounded.float().square().sum(-1) / 2
    labels = torch.empty(B, H, S, dtype=torch.int32, device=x.device)
    PAD_D = padded_head_size(D)
    _assign_kernel[(triton.cdiv(S, _ASSIGN_TOKENS), B * H)](
        x, rounded, half_norms, labels, *x.stride()[:3], H, S, K, D,
        TOKENS=_ASSIGN_TOKENS, CLUSTERS=_ASSIGN_CLUSTERS, PAD_D=PAD_D, EVEN_D=PAD_D == D,
        STAGES=3, num_warps=8,
    )  # fmt: skip
    return labels


def update_triton(x: Tensor, order: Tensor, offsets: Tensor, centroids: Tensor) -> Tensor:
    """Return the (B, H, K, D) float32 means of sorted tokens; empty clusters keep theirs."""
    B, H, S, D = x.shape
    K = centroids.shape[2]
    means = torch.empty_like(centroids)
    PAD_D = padded_head_size(D)
    _update_kernel[(K, B * H)](
        x, order, offsets, centroids, means, *x.stride()[:3], H, S, K, D,
        TOKENS=_UPDATE_TOKENS, PAD_D=PAD_D, EVEN_D=PAD_D == D, num_warps=4,
    )  # fmt: skip
    return means
