"""Triton twin of ``kmeans``: assignment as a matrix product, update as sums over sorted tokens."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.descriptors import heads_descriptor
from vidsparse.kernels.hopper_kmeans import assign_gluon, can_assign_gluon
from vidsparse.kernels.kmeans import Clusters
from vidsparse.kernels.launch import padded_head_size
from vidsparse.kernels.permute import SortedTokens
from vidsparse.kernels.triton_attention import load_rows
from vidsparse.kernels.triton_sort import sort_by_label_triton

# Fastest on an H100 of `python -m vidsparse.profiling.tune_parts --heads 40`, with 1000 clusters.
# (tokens, clusters, warps, stages) of a program that assigns.
ASSIGN = (64, 128, 4, 2)
# (tokens per step, warps, stages) of a program that averages; of the same command on an H200 the
# fastest with 300 and with 1000 clusters.
UPDATE = (64, 2, 3)


@triton.jit
def _assign_kernel(
    x_ptr, c_ptr, half_norm_ptr, labels_ptr, x_stride_b, x_stride_h, x_stride_s,
    H, S, K, padded, D,
    TOKENS: tl.constexpr, CLUSTERS: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
    STAGES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One program finds the nearest centroid of TOKENS tokens of one head."""
    head = tl.program_id(1).to(tl.int64)
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    x_ptr += (head // H) * x_stride_b + (head % H) * x_stride_h
    x = load_rows(x_ptr, tokens, x_stride_s, tokens < S, D, PAD_D, EVEN_D)
    best = tl.full([TOKENS], float("-inf"), tl.float32)
    label = tl.zeros([TOKENS], tl.int32)
    columns = tl.arange(0, CLUSTERS)
    for start in tl.range(0, K, CLUSTERS, num_stages=STAGES):
        inside = start + columns < K
        if TMA:
            c = c_ptr.load([head.to(tl.int32), start, 0]).reshape(CLUSTERS, PAD_D)
        else:
            c = load_rows(c_ptr + head * K * D, start + columns, D, inside, D, PAD_D, EVEN_D)
        half = tl.load(half_norm_ptr + head * padded + start + columns)
        # The nearest centroid has the largest x.c - |c|^2 / 2.
        score = tl.dot(x, c.T, input_precision="ieee") - half[None, :]
        top = tl.max(score, 1)
        # Reduced at once: a tile of running maxima would take the registers of a second program.
        nearest = tl.min(tl.where(score == top[:, None], columns[None, :], CLUSTERS), 1)
        # Strictly better: among equals the lowest cluster wins. NaN stays in range.
        label = tl.where(top > best, start + nearest, label)
        best = tl.maximum(best, top)
    label = tl.minimum(label, K - 1)
    tl.store(labels_ptr + head * S + tokens, label, mask=tokens < S)


@triton.jit
def _round_centroids_kernel(
    c_ptr, rounded_ptr, half_norm_ptr, K, padded, D,
    CLUSTERS: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """One program rounds CLUSTERS centroids of one head and takes half the squared norms."""
    head = tl.program_id(1).to(tl.int64)
    clusters = tl.program_id(0) * CLUSTERS + tl.arange(0, CLUSTERS)
    c = load_rows(c_ptr + head * K * D, clusters, D, clusters < K, D, PAD_D, EVEN_D)
    rounded = c.to(rounded_ptr.dtype.element_ty)
    columns = tl.arange(0, PAD_D)
    target = (head * K + clusters)[:, None] * D + columns[None, :]
    tl.store(rounded_ptr + target, rounded, mask=(clusters < K)[:, None] & (columns < D)[None, :])
    c = rounded.to(tl.float32)
    # Centroids that do not exist are far away, but finite: they meet no infinite score.
    half = tl.where(clusters < K, tl.sum(c * c, 1) / 2, 3.0e38)
    tl.store(half_norm_ptr + head * padded + clusters, half, mask=clusters < padded)


@triton.jit
def _update_kernel(
    x_ptr, order_ptr, offsets_ptr, old_ptr, new_ptr, x_stride_b, x_stride_h, x_stride_s,
    H, S, K, D, TOKENS: tl.constexpr, SUMS: tl.constexpr, PAD_D: tl.constexpr,
    EVEN_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program averages the tokens of one cluster of one head, in a fixed order."""
    cluster, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x_ptr += (head // H) * x_stride_b + (head % H) * x_stride_h
    order_ptr += head * S
    first = tl.load(offsets_ptr + head * (K + 1) + cluster)
    last = tl.load(offsets_ptr + head * (K + 1) + cluster + 1)
    columns = tl.arange(0, PAD_D)
    target = (head * K + cluster) * D + columns
    # Before the tokens: its latency then hides behind theirs.
    old = tl.load(old_ptr + target, mask=(columns < D) & (first == last), other=0.0)
    steps = tl.arange(0, TOKENS)
    token = tl.load(order_ptr + first + steps, mask=first + steps < last, other=0)
    total = tl.zeros([SUMS, PAD_D], tl.float32)
    for start in tl.range(first, last, TOKENS, num_stages=STAGES):
        x = load_rows(x_ptr, token, x_stride_s, start + steps < last, D, PAD_D, EVEN_D)
        ahead = start + TOKENS + steps
        token = tl.load(order_ptr + ahead, mask=ahead < last, other=0)
        # Tokens that one thread holds are added where they are.
        total += tl.sum(x.to(tl.float32).reshape(TOKENS // SUMS, SUMS, PAD_D), 0)
    mean = tl.sum(total, 0) / tl.maximum(last - first, 1).to(tl.float32)
    tl.store(new_ptr + target, tl.where(last > first, mean, old), mask=columns < D)


def kmeans_triton(x: Tensor, centroids: Tensor, iterations: int) -> Clusters:
    """Cluster; see ``kmeans.kmeans``."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    centroids = centroids.contiguous()
    labels = assign_triton(x, centroids)
    sorted_tokens = sort_by_label_triton(labels, centroids.shape[2])
    for step in range(iterations):
        if step:
            labels = assign_triton(x, centroids)
            sorted_tokens = sort_by_label_triton(labels, centroids.shape[2])
        centroids = update_triton(x, *sorted_tokens, centroids)
    sizes = sorted_tokens[1].diff()
    return Clusters(labels, centroids, sizes, SortedTokens(*sorted_tokens))


def assign_triton(
    x: Tensor, centroids: Tensor, config: tuple[int, int, int, int] | None = None
) -> Tensor:
    """Return the (B, H, S) int32 nearest centroid of each token.

    Args:
        x: (B, H, S, D) tokens.
        centroids: (B, H, K, D).
        config: configuration of the Triton kernel; None takes the Gluon kernel where it runs.
    """
    B, H, S, D = x.shape
    K = centroids.shape[2]
    rounded, half_norms = round_centroids(centroids, x.dtype)
    if config is None and can_assign_gluon(x):
        return assign_gluon(x, rounded, half_norms)
    tokens, clusters, warps, stages = ASSIGN if config is None else config
    labels = torch.empty(B, H, S, dtype=torch.int32, device=x.device)
    PAD_D = padded_head_size(D)
    descriptor = heads_descriptor(rounded, clusters, PAD_D)
    _assign_kernel[(triton.cdiv(S, tokens), B * H)](
        x, rounded if descriptor is None else descriptor, half_norms, labels,
        *x.stride()[:3], H, S, K, half_norms.shape[-1], D,
        TOKENS=tokens, CLUSTERS=clusters, PAD_D=PAD_D, EVEN_D=PAD_D == D,
        STAGES=stages, TMA=descriptor is not None, num_warps=warps,
    )  # fmt: skip
    return labels


def round_centroids(centroids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Prepare (B, H, K, D) float32 centroids for tensor cores, which take the tokens' dtype.

    Returns:
        The rounded centroids, and half their squared norms (B, H, K padded to 256), float32, of
        the rounded numbers too; 3e38 in the padding.
    """
    B, H, K, D = centroids.shape
    padded, PAD_D = triton.cdiv(K, 256) * 256, padded_head_size(D)
    rounded = torch.empty_like(centroids, dtype=dtype)
    half_norms = torch.empty(B, H, padded, dtype=torch.float32, device=centroids.device)
    _round_centroids_kernel[(padded // 32, B * H)](
        centroids, rounded, half_norms, K, padded, D, CLUSTERS=32, PAD_D=PAD_D, EVEN_D=PAD_D == D
    )
    return rounded, half_norms


def update_triton(
    x: Tensor,
    order: Tensor,
    offsets: Tensor,
    centroids: Tensor,
    config: tuple[int, int, int] = UPDATE,
) -> Tensor:
    """Return the (B, H, K, D) float32 means of sorted tokens; empty clusters keep theirs."""
    tokens, warps, stages = config
    B, H, S, D = x.shape
    K = centroids.shape[2]
    means = torch.empty_like(centroids)
    PAD_D = padded_head_size(D)
    _update_kernel[(K, B * H)](
        x, order, offsets, centroids, means, *x.stride()[:3], H, S, K, D,
        TOKENS=tokens, SUMS=min(tokens, max(1, warps * 256 // PAD_D)), PAD_D=PAD_D,
        EVEN_D=PAD_D == D, STAGES=stages, num_warps=warps,
    )  # fmt: skip
    return means
