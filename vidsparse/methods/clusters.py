"""Choose key clusters for query clusters: centroid scores, top-p, and the best at a density."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout

# Halvings of the range of logarithms, 100 or so: what remains is float32's own precision.
_BISECTIONS = 30
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class RankedClusters:
    """Key clusters of each query cluster in ascending order of estimated mass.

    Attributes:
        order: (B, H, Nq, Nk) int64, key cluster at each place, the best last.
        tail: (B, H, Nq, Nk) float32, mass of this place and all before it: what would be lost by
            dropping them, in [0, 1].
    """

    order: Tensor
    tail: Tensor

    def unsort(self, keep: Tensor) -> Tensor:
        """Bring a (B, H, Nq, Nk) mask in ranked order back to cluster order."""
        return torch.zeros_like(keep).scatter_(-1, self.order, keep)


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


def video_pair_budget(density: float, layout: VideoLayout) -> float:
    """Return how many video-to-video token pairs a density leaves after all pairs with text.

    Args:
        density: share of all token pairs, in (0, 1].
        layout: the sequence.

    Raises:
        UsageError: the pairs with text alone exceed the density.
    """
    every, video = layout.num_tokens**2, layout.video_tokens**2
    pairs = density * every - (every - video)
    if pairs <= 0:
        raise UsageError(
            f"density={density} is less than the {layout.text_tokens} text tokens need, which are "
            f"always kept; use more than {1 - video / every:.3f}"
        )
    return pairs


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
    scale = q_centroids.shape[-1] ** -0.5 if scale is None else scale
    scores = (q_centroids.float() * scale) @ k_centroids.float().mT
    return torch.log_softmax(scores + k_sizes.float().log().unsqueeze(-2), -1)


def rank_clusters(log_mass: Tensor) -> RankedClusters:
    """Sort each row of (B, H, Nq, Nk) float32 log masses; empty clusters (-inf) come first.

    The sums run from the smallest mass upwards: sums from the largest would stall at 1 and make
    all small clusters look alike.
    """
    ranked = log_mass.sort(dim=-1, stable=True)
    return RankedClusters(ranked.indices, ranked.values.exp().cumsum(-1).clamp(max=1))


def keep_top_p(ranked: RankedClusters, p: float, *, min_ratio: float = 0.0) -> Tensor:
    """Keep the fewest best clusters whose mass exceeds ``p``, the best one always.

    A cluster is kept when the clusters ahead of it hold at most ``p``: the one that crosses
    ``p`` is in, and p = 1 keeps everything.

    Args:
        ranked: clusters by mass.
        p: mass to recover, in (0, 1].
        min_ratio: share of the clusters that every row keeps at least, in [0, 1].

    Returns:
        (B, H, Nq, Nk) bool in cluster order.

    Raises:
        UsageError: a value is out of range.

    Source: SVG2, arXiv:2505.18875, section 4.2.
    """
    if not 0 < p <= 1:
        raise UsageError(f"top_p={p} must lie in (0, 1]; 1 keeps every cluster")
    if not 0 <= min_ratio <= 1:
        raise UsageError(f"min_ratio={min_ratio} must lie in [0, 1]")
    return ranked.unsort((ranked.tail >= 1 - p) | _best(ranked, min_ratio))


def log_key_weight(log_mass: Tensor, k_sizes: Tensor) -> Tensor:
    """Turn masses into weights of one key: (B, H, Nq, Nk) logarithms, -inf for empty clusters.

    Ranked by it, a budget of token pairs buys the most mass: a small cluster of strong keys is
    cheaper than a large one of the same mass.
    """
    sizes = k_sizes.unsqueeze(-2)
    return (log_mass - sizes.clamp(min=1).log()).masked_fill(sizes == 0, -torch.inf)


def keep_heaviest(log_weight: Tensor, q_sizes: Tensor, k_sizes: Tensor, pairs: float) -> Tensor:
    """Keep the heaviest keys of all heads of a batch row within a budget of token pairs.

    One threshold serves all heads: heads that look everywhere get more of the budget, heads that
    look at few keys less. Nothing waits for the device.

    Args:
        log_weight: (B, H, Nq, Nk) float32, of one key of each cluster.
        q_sizes: (B, H, Nq) integer tokens per query cluster.
        k_sizes: (B, H, Nk) integer tokens per key cluster.
        pairs: token pairs to keep per head, on average over the heads of a batch row.

    Returns:
        (B, H, Nq, Nk) bool; at most the budget, but every row keeps its best cluster.
    """
    best = torch.zeros_like(log_weight, dtype=torch.bool)
    best.scatter_(-1, log_weight.argmax(-1, keepdim=True), True)
    cost = q_sizes[..., :, None].float() * k_sizes[..., None, :].float()
    # The search counts the best clusters too: they are above any threshold.
    weight = log_weight.masked_fill(best, torch.inf)
    return (weight >= _threshold(weight, cost, pairs * weight.shape[1])) | best


def _best(ranked: RankedClusters, min_ratio: float) -> Tensor:
    Nk = ranked.tail.shape[-1]
    kept = max(1, int(min_ratio * Nk))
    return torch.arange(Nk, device=ranked.tail.device) >= Nk - kept


def _threshold(weight: Tensor, cost: Tensor, budget: float) -> Tensor:
    """Return the least (B, 1, 1, 1) threshold per batch row whose kept cost is within budget."""
    finite = weight.isfinite()
    low = weight.masked_fill(~finite, torch.inf).amin((1, 2, 3), keepdim=True)
    # Weights are logarithms of shares: none but the forced ones exceed 0.
    low, high = low.clamp(max=0) - 1, torch.ones_like(low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        kept = torch.where(weight >= middle, cost, 0)
        within = kept.sum((1, 2, 3), keepdim=True, dtype=torch.float64) <= budget
        low, high = torch.where(within, low, middle), torch.where(within, middle, high)
    return high
