"""k-means over the tokens of each head: batched, deterministic, a fixed number of steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.permute import SortedTokens, count_labels, sort_by_label

# Tokens whose distances to all centroids are held at once in the torch path.
_TOKENS = 4096


class Clusters(NamedTuple):
    """Result of k-means.

    Args:
        labels: (B, H, S) int32 cluster of each token.
        centroids: (B, H, K, D) float32 means of the clusters with these labels; an empty cluster
            keeps the centroid that it had.
        sizes: (B, H, K) int32 tokens per cluster.
        tokens: sorted by label.
    """

    labels: Tensor
    centroids: Tensor
    sizes: Tensor
    tokens: SortedTokens


def kmeans(
    x: Tensor,
    num_clusters: int,
    *,
    iterations: int = 10,
    init: Tensor | None = None,
    seed: int = 0,
) -> Clusters:
    """Cluster the tokens of each head by Euclidean distance.

    Args:
        x: (B, H, S, D) tokens, any floating dtype; distances are taken in float32 on rounded
            inputs, ties go to the lowest cluster.
        num_clusters: K, from 1 to S.
        iterations: Lloyd steps; 0 only assigns to ``init``.
        init: (B, H, K, D) first centroids, as from an earlier call; None draws K tokens per head.
        seed: seed of that draw, per device; the global generators stay untouched.

    Returns:
        Labels, the centroids of these labels, sizes and order. No host synchronisation.

    Raises:
        ValueError: ``num_clusters``, ``iterations`` or the shape of ``init`` is out of range.

    Source: SVG2, arXiv:2505.18875, section 4.1.
    """
    _check(x, num_clusters, iterations, init)
    centroids = _draw_tokens(x, num_clusters, seed) if init is None else init.float()
    if triton_is_native(x.device):
        from vidsparse.kernels.triton_kmeans import kmeans_triton

        x = x.float() if x.dtype is torch.float64 else x
        return kmeans_triton(x, centroids, iterations)
    labels = _assign(x, centroids)
    for step in range(iterations):
        labels = _assign(x, centroids) if step else labels
        centroids = _update(x, labels, centroids)
    tokens = sort_by_label(labels, num_clusters)
    return Clusters(labels, centroids, tokens.offsets.diff(), tokens)


def _assign(x: Tensor, centroids: Tensor) -> Tensor:
    """Return the (B, H, S) int32 nearest centroid; |x|^2 is the same for all and left out."""
    half_norms = centroids.square().sum(-1)[:, :, None] / 2
    parts = [
        torch.argmin(half_norms - part.float() @ centroids.mT, -1)
        for part in x.split(_TOKENS, dim=2)
    ]
    return torch.cat(parts, -1).to(torch.int32)


def _update(x: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    B, H, _, D = x.shape
    K = centroids.shape[2]
    base = torch.arange(B * H, device=x.device).view(B, H, 1) * K
    sums = torch.zeros(B * H * K, D, dtype=torch.float32, device=x.device)
    sums.index_add_(0, (base + labels).flatten(), x.reshape(-1, D).float())
    sizes = count_labels(labels, K)[..., None]
    means = sums.view(B, H, K, D) / sizes.clamp(min=1)
    return torch.where(sizes > 0, means, centroids)


def _draw_tokens(x: Tensor, num_clusters: int, seed: int) -> Tensor:
    B, H, S, D = x.shape
    generator = torch.Generator(device=x.device).manual_seed(seed)
    keys = torch.rand(B, H, S, generator=generator, dtype=torch.float32, device=x.device)
    chosen = keys.argsort(-1)[..., :num_clusters, None]
    return x.gather(2, chosen.expand(-1, -1, -1, D)).float()


def _check(x: Tensor, num_clusters: int, iterations: int, init: Tensor | None) -> None:
    if x.ndim != 4 or not x.dtype.is_floating_point or 0 in x.shape:
        raise ValueError(
            f"x is {x.dtype} with shape {tuple(x.shape)}; give non-empty floating (B, H, S, D)"
        )
    B, H, S, D = x.shape
    if not 1 <= num_clusters <= S:
        raise ValueError(f"num_clusters={num_clusters} must lie in 1..{S}, the number of tokens")
    if iterations < 0:
        raise ValueError(f"iterations={iterations} must be at least 0")
    if init is not None and tuple(init.shape) != (B, H, num_clusters, D):
        raise ValueError(
            f"init has shape {tuple(init.shape)}; give {(B, H, num_clusters, D)} or None"
        )
