"""Choose key clusters for query clusters: centroid scores, top-p, and top-p at a given density."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout

# Halvings of the threshold's exponent range: 2**-31 of 128 octaves is finer than float32.
_BISECTIONS = 34
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


def keep_top_p_at_density(
    ranked: RankedClusters,
    q_sizes: Tensor,
    k_sizes: Tensor,
    pairs: float,
    *,
    min_ratio: float = 0.0,
) -> Tensor:
    """Keep what one top-p threshold keeps, with p chosen so that token pairs meet a budget.

    The threshold is shared by the heads of a batch row: flat heads get more, sharp ones less.
    Nothing waits for the device.

    Args:
        ranked: clusters by mass.
        q_sizes: (B, H, Nq) integer tokens per query cluster.
        k_sizes: (B, H, Nk) integer tokens per key cluster.
        pairs: query-key token pairs to keep per batch row and head on average.
        min_ratio: share of the clusters that every row keeps at least, in [0, 1]; it and the best
            cluster of every row are kept even where they exceed the budget.

    Returns:
        (B, H, Nq, Nk) bool in cluster order; the kept pairs are at most the budget.
    """
    floor = _best(ranked, min_ratio)
    cost = q_sizes[..., None].float() * _in_order(k_sizes, ranked.order)
    budget = pairs * ranked.tail.shape[1]
    # The best cluster comes first in the search too: infinite loss when it is dropped.
    loss = ranked.tail.clamp(min=torch.finfo(torch.float32).tiny).log2().masked_fill(floor, 1.0)
    return ranked.unsort((loss >= _threshold(loss, cost, budget)) | floor)


def _best(ranked: RankedClusters, min_ratio: float) -> Tensor:
    Nk = ranked.tail.shape[-1]
    kept = max(1, int(min_ratio * Nk))
    return torch.arange(Nk, device=ranked.tail.device) >= Nk - kept


def _in_order(k_sizes: Tensor, order: Tensor) -> Tensor:
    return k_sizes.float().unsqueeze(-2).expand(order.shape).gather(-1, order)


def _threshold(loss: Tensor, cost: Tensor, budget: float) -> Tensor:
    """Return per batch row the least threshold whose kept cost is within the budget.

    ``loss`` lies in [-126, 1]; the result is (B, 1, 1, 1).
    """
    low = loss.new_full((loss.shape[0], 1, 1, 1), -127.0)
    high = torch.full_like(low, 1.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        kept = torch.where(loss >= middle, cost, 0)
        kept = kept.sum((1, 2, 3), keepdim=True, dtype=torch.float64)
        low = torch.where(kept > budget, middle, low)
        high = torch.where(kept > budget, high, middle)
    return high
