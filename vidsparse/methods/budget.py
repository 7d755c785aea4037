"""Turn block scores into a mask: the one budget component that every method uses.

All functions stay on the scores' device and never wait for it. Ranking is stable: of equal scores
the lower index wins. Forced blocks come first, count against the budget, and every row keeps at
least its best block.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.top_blocks import keep_top_weight
from vidsparse.methods.budget_search import SLACK, RankedRows, before

BudgetKind = Literal["flat", "shared", "row", "top_p", "threshold"]
BUDGET_KINDS: tuple[BudgetKind, ...] = ("flat", "shared", "row", "top_p", "threshold")
# Kinds that meet a requested density.
DENSITY_KINDS: tuple[BudgetKind, ...] = ("flat", "shared", "row")


@dataclass(frozen=True)
class Budget:
    """How much of a map may be kept, and who competes with whom.

    Attributes:
        kind: "flat" ranks the whole map of a head, "shared" the maps of all heads of a batch row
            together, "row" each query block's row, "top_p" keeps the best blocks of a row until
            they hold a share ``p`` of its scores, "threshold" every block whose score reaches
            ``threshold``.
        density: kept share of query-key pairs for "flat", "shared" and "row", in (0, 1]; the
            least share of keys per row for "top_p", in [0, 1].
        p: share of a row's score for "top_p", in [0, 1].
        threshold: least score for "threshold".

    Raises:
        UsageError: a value is out of range.
    """

    kind: BudgetKind = "flat"
    density: float = 0.3
    p: float = 0.9
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in BUDGET_KINDS:
            raise UsageError(f"budget {self.kind!r} is unknown; use one of {BUDGET_KINDS}")
        least = 0 if self.kind == "top_p" else 1e-12
        if not least <= self.density <= 1:
            raise UsageError(f"density={self.density} must lie in (0, 1]; 1 is dense attention")
        if not 0 <= self.p <= 1:
            raise UsageError(f"p={self.p} must lie in [0, 1]")

    def select(
        self,
        scores: Tensor,
        forced: Tensor | None,
        q_sizes: Tensor,
        kv_sizes: Tensor,
        *,
        floor: bool = True,
    ) -> Tensor:
        """Choose blocks.

        Args:
            scores: (B, H, Nq, Nkv) float32; for "top_p" each row sums to 1.
            forced: bool, broadcastable to the scores, blocks that are kept whatever they score.
            q_sizes: (..., Nq) integer tokens per query block.
            kv_sizes: (..., Nkv) integer tokens per key block.
            floor: keep the best block of rows without a forced one; False, which saves a pass,
                where every row has one.

        Returns:
            (B, H, Nq, Nkv) bool.
        """
        kept = _with_floor(scores, forced) if floor or forced is None else forced
        if self.kind == "flat":
            return _flat(scores, self.density, q_sizes, kv_sizes, kept)
        if self.kind == "shared":
            return _shared(scores, self.density, q_sizes, kv_sizes, kept)
        if self.kind == "row":
            return _row(scores, self.density, q_sizes, kv_sizes, kept)
        if self.kind == "top_p":
            return _top_p(scores, self.p, kv_sizes, kept, self.density)
        return (scores >= self.threshold) | kept


def flat_top_k(
    scores: Tensor,
    density: float,
    q_sizes: Tensor,
    kv_sizes: Tensor,
    *,
    forced: Tensor | None = None,
) -> Tensor:
    """Keep each head's best blocks until they hold a share ``density`` of its pairs.

    The last block kept is the one that reaches the request: with equal blocks exactly
    ceil(density * Nq * Nkv) stay, and in general less than one block too many.

    Args:
        scores: (B, H, Nq, Nkv) floating.
        density: kept share of query-key pairs, in (0, 1].
        q_sizes: (..., Nq) integer tokens per query block.
        kv_sizes: (..., Nkv) integer tokens per key block.
        forced: bool, broadcastable to the scores.

    Returns:
        (B, H, Nq, Nkv) bool.

    Source: DraftAttention, arXiv:2505.14708, equation 10, with a floor for every row.
    """
    return _flat(scores, density, q_sizes, kv_sizes, _with_floor(scores, forced))


def _flat(
    scores: Tensor, density: float, q_sizes: Tensor, kv_sizes: Tensor, kept: Tensor
) -> Tensor:
    if q_sizes.ndim == kv_sizes.ndim == 1:
        target = _shared_target(density, q_sizes, kv_sizes)
        return _keep(scores, _shared_pairs(q_sizes, kv_sizes), target, kept)
    pairs = (q_sizes[..., :, None] * kv_sizes[..., None, :]).flatten(-2)
    pairs = pairs.expand(*scores.shape[:2], -1).reshape(-1, pairs.shape[-1])
    return _keep(scores, pairs, _targets(density, pairs), kept)


# A geometry's sizes are the same tensors at every call: these are five launches fewer each time.
@lru_cache(maxsize=16)
def _shared_pairs(q_sizes: Tensor, kv_sizes: Tensor) -> Tensor:
    """Return the (1, Nq * Nkv) int32 pairs of sizes that all heads share."""
    return (q_sizes[:, None] * kv_sizes).view(1, -1).to(torch.int32)


@lru_cache(maxsize=64)
def _shared_target(density: float, q_sizes: Tensor, kv_sizes: Tensor) -> Tensor:
    return _targets(density, _shared_pairs(q_sizes, kv_sizes))


def _targets(density: float, pairs: Tensor) -> Tensor:
    """Return how many pairs of each row of (R, N) are kept, (R, 1) int64."""
    # In float64: float32 rounds by more than the slack and may ask for a block too many.
    return ((density - SLACK) * pairs.sum(-1, keepdim=True).double()).ceil().long()


def shared_top_k(
    scores: Tensor,
    density: float,
    q_sizes: Tensor,
    kv_sizes: Tensor,
    *,
    forced: Tensor | None = None,
) -> Tensor:
    """Keep the best blocks of all heads of a batch row until they hold a share of their pairs.

    One threshold serves all heads: heads that look everywhere get more of the budget, heads that
    look at few keys less. Scores of different heads must mean the same. It is ``flat_top_k`` of
    the heads' maps laid end to end.

    Args:
        scores: (B, H, Nq, Nkv) floating, compared in float32.
        density: kept share of query-key pairs, the mean over the heads, in (0, 1].
        q_sizes: (..., Nq) integer tokens per query block.
        kv_sizes: (..., Nkv) integer tokens per key block.
        forced: bool, broadcastable to the scores.

    Returns:
        (B, H, Nq, Nkv) bool.
    """
    return _shared(scores, density, q_sizes, kv_sizes, _with_floor(scores, forced))


def _shared(
    scores: Tensor, density: float, q_sizes: Tensor, kv_sizes: Tensor, kept: Tensor
) -> Tensor:
    pairs = (q_sizes[..., :, None] * kv_sizes[..., None, :]).expand(scores.shape)
    pairs = pairs.flatten(1)
    return _keep(scores.float(), pairs, _targets(density, pairs), kept)


def _keep(scores: Tensor, pairs: Tensor, targets: Tensor, kept: Tensor) -> Tensor:
    """Keep the best entries of each row of pairs, (R | 1, N), that the scores are cut into."""
    N = pairs.shape[-1]
    one = kept.numel() == N and kept.shape[-2:] == scores.shape[-2:]
    shared = one and (kept.ndim < 4 or kept.shape[0] == 1)
    forced = kept if shared else kept.expand(scores.shape)
    kept = keep_top_weight(scores.reshape(-1, N), pairs, targets, forced.reshape(-1, N))
    return kept.view(scores.shape)


def row_top_k(
    scores: Tensor,
    density: float | Tensor,
    q_sizes: Tensor,
    kv_sizes: Tensor,
    *,
    forced: Tensor | None = None,
) -> Tensor:
    """Keep the best blocks of every row, the same share of keys in each.

    Rows whose forced blocks need more take it from the others. A fractional number of blocks is
    rounded up in some rows and down in others, so that the whole map meets the request.

    Args:
        scores: (B, H, Nq, Nkv) floating.
        density: kept share of query-key pairs, in (0, 1]; (B, H, 1) float64 for one per head.
        q_sizes: (..., Nq) integer tokens per query block.
        kv_sizes: (..., Nkv) integer tokens per key block.
        forced: bool, broadcastable to the scores.

    Returns:
        (B, H, Nq, Nkv) bool.

    Source: AdaSpa, arXiv:2502.21079, section 4.2.
    """
    return _row(scores, density, q_sizes, kv_sizes, _with_floor(scores, forced))


def _row(
    scores: Tensor,
    density: float | Tensor,
    q_sizes: Tensor,
    kv_sizes: Tensor,
    kept: Tensor,
) -> Tensor:
    return RankedRows.of(scores, kept, q_sizes, kv_sizes).cut(density)


def rank_rows(
    scores: Tensor, q_sizes: Tensor, kv_sizes: Tensor, *, forced: Tensor | None = None
) -> RankedRows:
    """Sort the rows of a map once, to cut them at several densities as ``row_top_k`` does.

    Args:
        scores: (B, H, Nq, Nkv) floating.
        q_sizes: (..., Nq) integer tokens per query block.
        kv_sizes: (..., Nkv) integer tokens per key block.
        forced: bool, broadcastable to the scores.
    """
    return RankedRows.of(scores, _with_floor(scores, forced), q_sizes, kv_sizes)


def top_p(
    mass: Tensor,
    p: float,
    kv_sizes: Tensor,
    *,
    forced: Tensor | None = None,
    min_density: float = 0.0,
) -> Tensor:
    """Keep the best blocks of every row until they hold a share ``p`` of its mass.

    A block is kept while what comes before it holds at most ``p``, as in SVG2: the block that
    crosses ``p`` is in, and one that reaches it exactly has the next one kept too.

    Args:
        mass: (B, H, Nq, Nkv) floating, at least 0, each row sums to 1; summed in float32 at
            least.
        p: share in [0, 1]; 1 keeps everything.
        kv_sizes: (..., Nkv) integer tokens per key block.
        forced: bool, broadcastable to the mass.
        min_density: least share of keys per row, in [0, 1].

    Returns:
        (B, H, Nq, Nkv) bool.

    Source: SVG2, arXiv:2505.18875, section 4.2.
    """
    return _top_p(mass, p, kv_sizes, _with_floor(mass, forced), min_density)


def _top_p(mass: Tensor, p: float, kv_sizes: Tensor, kept: Tensor, min_density: float) -> Tensor:
    if p >= 1:
        return torch.ones_like(mass, dtype=torch.bool)
    order = torch.argsort(mass.masked_fill(kept, torch.inf), dim=-1, descending=True, stable=True)
    exact = mass.to(torch.promote_types(mass.dtype, torch.float32))
    # Sums from the largest mass down would stall at 1 and make all small blocks look alike.
    tail = exact.gather(-1, order).flip(-1).cumsum(-1).flip(-1)
    wanted = tail >= 1 - p
    if min_density > 0:
        sizes = kv_sizes[..., None, :].expand(mass.shape).gather(-1, order)
        least = (min_density - SLACK) * kv_sizes.sum(-1)[..., None, None].double()
        wanted |= before(sizes) < least
    return _unsort(wanted, order) | kept


def check_density(density: float, least: float, always: str) -> None:
    """Refuse a density that forced blocks alone exceed.

    Args:
        density: what was asked for.
        least: share of pairs in forced blocks.
        always: what those hold, for people, such as "text".

    Raises:
        UsageError: ``density`` is below ``least``.
    """
    if density < least - SLACK:
        enough = min(1.0, math.ceil(least * 1e4) / 1e4)
        raise UsageError(
            f"density={density} is too small here: {always} always stay, {least:.4f} of all "
            f"query-key pairs; use a density of at least {enough:.4f}"
        )


def _with_floor(scores: Tensor, forced: Tensor | None) -> Tensor:
    """Return forced blocks, and the best block of rows that have none: (B, H, Nq, Nkv) bool."""
    best = torch.zeros_like(scores, dtype=torch.bool)
    best.scatter_(-1, scores.argmax(-1, keepdim=True), True)
    if forced is None:
        return best
    return forced | (best & ~forced.any(-1, keepdim=True))


def _unsort(kept: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(kept).scatter_(-1, order, kept)
