"""Turn block scores into a mask: the one budget component that every method uses.

All functions stay on the scores' device and never wait for it. Ranking is stable: of equal scores
the lower index wins. Forced blocks come first, count against the budget, and every row keeps at
least its best block.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.top_blocks import keep_top_weight

BudgetKind = Literal["flat", "row", "top_p", "threshold"]
BUDGET_KINDS: tuple[BudgetKind, ...] = ("flat", "row", "top_p", "threshold")

# Share of all pairs that a request may be off through rounding of its decimal fraction.
_SLACK = 1e-9


@dataclass(frozen=True)
class Budget:
    """How much of a map may be kept, and who competes with whom.

    Attributes:
        kind: "flat" ranks the whole map of a head, "row" each query block's row, "top_p" keeps
            the best blocks of a row until they hold a share ``p`` of its scores, "threshold"
            every block whose score reaches ``threshold``.
        density: kept share of query-key pairs for "flat" and "row", in (0, 1]; the least share of
            keys per row for "top_p", in [0, 1].
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
        self, scores: Tensor, forced: Tensor | None, q_sizes: Tensor, kv_sizes: Tensor
    ) -> Tensor:
        """Choose blocks.

        Args:
            scores: (B, H, Nq, Nkv) float32; for "top_p" each row sums to 1.
            forced: bool, broadcastable to the scores, blocks that are kept whatever they score.
            q_sizes: (..., Nq) integer tokens per query block.
            kv_sizes: (..., Nkv) integer tokens per key block.

        Returns:
            (B, H, Nq, Nkv) bool.
        """
        if self.kind == "flat":
            return flat_top_k(scores, self.density, q_sizes, kv_sizes, forced=forced)
        if self.kind == "row":
            return row_top_k(scores, self.density, q_sizes, kv_sizes, forced=forced)
        if self.kind == "top_p":
            return top_p(scores, self.p, kv_sizes, forced=forced, min_density=self.density)
        return above_threshold(scores, self.threshold, forced=forced)


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
    kept = _with_floor(scores, forced)
    pairs = (q_sizes[..., :, None] * kv_sizes[..., None, :]).flatten(-2)
    pairs = pairs.expand(*scores.shape[:2], -1) if pairs.ndim > 1 else pairs
    pairs = pairs.reshape(-1, pairs.shape[-1])
    targets = (density - _SLACK) * pairs.sum(-1, keepdim=True)
    ranked = scores.masked_fill(kept, torch.inf).view(-1, pairs.shape[-1])
    return keep_top_weight(ranked, pairs, targets).view(scores.shape) | kept


def row_top_k(
    scores: Tensor,
    density: float,
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
        density: kept share of query-key pairs, in (0, 1].
        q_sizes: (..., Nq) integer tokens per query block.
        kv_sizes: (..., Nkv) integer tokens per key block.
        forced: bool, broadcastable to the scores.

    Returns:
        (B, H, Nq, Nkv) bool.

    Source: AdaSpa, arXiv:2502.21079, section 4.2.
    """
    kept = _with_floor(scores, forced)
    order = torch.argsort(scores.masked_fill(kept, torch.inf), dim=-1, descending=True, stable=True)
    sizes = kv_sizes[..., None, :].expand(scores.shape).gather(-1, order)
    need = (kept * kv_sizes[..., None, :]).sum(-1).double()
    level = _even_level(need, q_sizes, density * kv_sizes.sum(-1, keepdim=True))
    rounding = _spread(scores.shape[-2], scores.device)[:, None] * sizes
    wanted = _before(sizes) < level[..., None] - rounding - _SLACK * kv_sizes.sum()
    return _unsort(wanted, order) | kept


def top_p(
    mass: Tensor,
    p: float,
    kv_sizes: Tensor,
    *,
    forced: Tensor | None = None,
    min_density: float = 0.0,
) -> Tensor:
    """Keep the best blocks of every row until they hold a share ``p`` of its mass.

    A block is kept while what comes before it holds at most ``p``, as in SVG2.

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
    if p >= 1:
        return torch.ones_like(mass, dtype=torch.bool)
    kept = _with_floor(mass, forced)
    order = torch.argsort(mass.masked_fill(kept, torch.inf), dim=-1, descending=True, stable=True)
    exact = mass.to(torch.promote_types(mass.dtype, torch.float32))
    held = _before(exact.gather(-1, order))
    sizes = kv_sizes[..., None, :].expand(mass.shape).gather(-1, order)
    least = (min_density - _SLACK) * kv_sizes.sum(-1)[..., None, None]
    wanted = (held <= p) | (_before(sizes) < least)
    return _unsort(wanted, order) | kept


def above_threshold(scores: Tensor, threshold: float, *, forced: Tensor | None = None) -> Tensor:
    """Keep every block whose score is at least ``threshold``: (B, H, Nq, Nkv) bool."""
    return (scores >= threshold) | _with_floor(scores, forced)


def check_density(density: float, least: float) -> None:
    """Refuse a density that forced blocks alone exceed.

    Args:
        density: what was asked for.
        least: share of pairs in forced blocks.

    Raises:
        UsageError: ``density`` is below ``least``.
    """
    if density < least - _SLACK:
        enough = min(1.0, least + 5e-5)
        raise UsageError(
            f"density={density} is too small here: text, first frame and each block's own "
            f"neighbourhood alone are {least:.4f}; use a density of at least {enough:.4f}"
        )


def _with_floor(scores: Tensor, forced: Tensor | None) -> Tensor:
    """Return forced blocks, and the best block of rows that have none: (B, H, Nq, Nkv) bool."""
    best = torch.zeros_like(scores, dtype=torch.bool)
    best.scatter_(-1, scores.argmax(-1, keepdim=True), True)
    if forced is None:
        return best
    return forced | (best & ~forced.any(-1, keepdim=True))


def _before(sizes: Tensor) -> Tensor:
    """Sum what precedes each entry of the last dimension."""
    return torch.nn.functional.pad(sizes.cumsum(-1)[..., :-1], (1, 0))


def _unsort(kept: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(kept).scatter_(-1, order, kept)


def _even_level(need: Tensor, q_sizes: Tensor, keys: Tensor) -> Tensor:
    """Return (..., Nq) keys per row: an even level, more where a row needs more.

    Args:
        need: (..., Nq) float64 keys that each row keeps in any case.
        q_sizes: (..., Nq) tokens per row.
        keys: (..., 1) wanted mean over the tokens.
    """
    weights = q_sizes.double().expand(need.shape)
    needs, rank = need.sort(-1, descending=True)
    weights = weights.gather(-1, rank)
    total = weights.sum(-1, keepdim=True)
    # Level when the k neediest rows keep what they need and the others share the rest.
    spent, used = _before(needs * weights), _before(weights)
    level = ((keys * total - spent) / (total - used)).amin(-1, keepdim=True)
    return torch.maximum(need, level)


def _spread(count: int, device: torch.device) -> Tensor:
    """Return (count,) float64 in (0, 1): evenly spaced values, neighbours far apart."""
    ids = torch.arange(count, device=device, dtype=torch.float64)
    shuffled = torch.argsort(torch.frac(ids * 0.6180339887498949))
    values = torch.empty_like(ids)
    values[shuffled] = (ids + 0.5) / max(count, 1)
    return values
