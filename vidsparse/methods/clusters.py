"""Score key clusters for query clusters by their centroids; shared with other pooled maps."""

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.methods.budget import top_p

_GOLDEN = (5**0.5 - 1) / 2
# Mass of clusters whose own underflows: they still rank before empty ones.
_LEAST_MASS = torch.finfo(torch.float32).tiny


def spread_tokens(x: Tensor, count: int) -> Tensor:
    """Return one token of each of ``count`` equal stretches of (B, H, S, D), the same every time.

    The place within a stretch follows the golden ratio: equal strides could fall into step with
    the rows or frames of the grid and start all clusters in one column.
    """
    S = x.shape[2]
    stretch = torch.arange(count + 1, device=x.device)
    first = stretch * S // count
    offset = stretch[:-1].double() * _GOLDEN % 1 * first.diff()
    return x.index_select(2, first[:-1] + offset.long())


def log_cluster_mass(
    q_centroids: Tensor, k_centroids: Tensor, k_sizes: Tensor, *, scale: float | None = None
) -> Tensor:
    """Estimate the attention mass of every key cluster as if its keys were their centroid.

    Args:
        q_centroids: (B, H, Nq, D), any floating dtype; scores are taken in float32.
        k_centroids: (B, H, Nk, D).
        k_sizes: (B, H, Nk) integer tokens per key cluster; empty clusters have mass 0.
        scale: factor on the logits, 1 / sqrt(D) by default.

    Returns:
        (B, H, Nq, Nk) float32 natural logarithm of the share of each cluster; exp sums to 1.

    Source: SVG2, arXiv:2505.18875, section 4.2: P_ij ~ n_j exp(q_i . k_j / sqrt(D)).
    """
    log_sizes = k_sizes.float().log()
    return torch.log_softmax(cluster_logits(q_centroids, k_centroids, log_sizes, scale=scale), -1)


def cluster_logits(
    q_centroids: Tensor, k_centroids: Tensor, log_sizes: Tensor, *, scale: float | None = None
) -> Tensor:
    """Do as ``log_cluster_mass`` but leave the rows without their common term.

    ``log_sizes`` (B | 1, H | 1, Nk) float32 are the logarithms of ``k_sizes``.
    """
    scale = q_centroids.shape[-1] ** -0.5 if scale is None else scale
    q, k = (x.float().flatten(0, 1) for x in (q_centroids, k_centroids))
    bias = log_sizes.expand(*q_centroids.shape[:2], -1).reshape(len(q), 1, -1)
    logits: Tensor = torch.baddbmm(bias, q, k.mT, alpha=scale)
    return logits.view(*q_centroids.shape[:3], k.shape[1])


def keep_top_p(log_mass: Tensor, p: float, *, min_ratio: float = 0.0) -> Tensor:
    """Keep the fewest best clusters whose mass exceeds ``p``, the best one always.

    Args:
        log_mass: (B, H, Nq, Nk) float32 logarithms of shares; -inf for empty clusters.
        p: mass to recover, in (0, 1].
        min_ratio: share of the clusters that every row keeps at least, in [0, 1].

    Returns:
        (B, H, Nq, Nk) bool.

    Raises:
        UsageError: a value is out of range.

    Source: SVG2, arXiv:2505.18875, section 4.2.
    """
    if not 0 < p <= 1:
        raise UsageError(f"top_p={p} must lie in (0, 1]; 1 keeps every cluster")
    if not 0 <= min_ratio <= 1:
        raise UsageError(f"min_ratio={min_ratio} must lie in [0, 1]")
    Nk = log_mass.shape[-1]
    mass = log_mass.exp().clamp(min=_LEAST_MASS).masked_fill(log_mass.isneginf(), 0)
    # The least share counts clusters, not their tokens, as the authors' does.
    each = torch.ones(Nk, dtype=torch.int64, device=log_mass.device)
    return top_p(mass, p, each, min_density=int(min_ratio * Nk) / Nk)


def log_key_weight(log_mass: Tensor, k_sizes: Tensor) -> Tensor:
    """Turn masses into weights of one key: (B, H, Nq, Nk) logarithms, -inf for empty clusters.

    Ranked by it, a budget of token pairs buys the most mass: a small cluster of strong keys is
    cheaper than a large one of the same mass.
    """
    sizes = k_sizes.unsqueeze(-2)
    return (log_mass - sizes.clamp(min=1).log()).masked_fill(sizes == 0, -torch.inf)
