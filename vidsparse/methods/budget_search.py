"""Searches behind the budgets: ranked rows of a map, and a level of keys for them."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Share of all keys that a request may be off through rounding of its decimal fraction.
SLACK = 1e-9


@dataclass(frozen=True)
class RankedRows:
    """A map whose rows are sorted once and may be cut at several densities.

    Attributes:
        order: (B, H, Nq, Nkv) int64, block ids of each row from the best to the worst.
        keys_before: (B, H, Nq, Nkv) keys of the better blocks, at each rank.
        sizes: (B, H, Nq, Nkv) keys of the block at each rank.
        kept: bool, broadcastable to these, blocks that stay in any case; they rank first.
        q_sizes: (..., Nq) integer tokens per query block.
        kv_sizes: (..., Nkv) integer tokens per key block.
    """

    order: Tensor
    keys_before: Tensor
    sizes: Tensor
    kept: Tensor
    q_sizes: Tensor
    kv_sizes: Tensor

    @staticmethod
    def of(scores: Tensor, kept: Tensor, q_sizes: Tensor, kv_sizes: Tensor) -> "RankedRows":
        """Sort the rows of (B, H, Nq, Nkv) scores."""
        ranked = scores.masked_fill(kept, torch.inf)
        order = torch.argsort(ranked, dim=-1, descending=True, stable=True)
        sizes = kv_sizes[..., None, :].expand(scores.shape).gather(-1, order)
        return RankedRows(order, before(sizes), sizes, kept, q_sizes, kv_sizes)

    def cut(self, density: float | Tensor) -> Tensor:
        """Keep the same share of keys in every row: (B, H, Nq, Nkv) bool.

        Args:
            density: kept share of query-key pairs, in (0, 1]; (B, H, 1) float64 for one per head.
        """
        need = (self.kept * self.kv_sizes[..., None, :]).sum(-1).double()
        keys = density * self.kv_sizes.sum(-1, keepdim=True).double()
        level = even_level(need, self.q_sizes, keys)
        rounding = spread_evenly(self.order.shape[-2], self.order.device)[:, None] * self.sizes
        wanted = self.keys_before < level[..., None] - rounding - SLACK * self.kv_sizes.sum()
        unsorted = torch.empty_like(self.order, dtype=torch.bool)
        return unsorted.scatter_(-1, self.order, wanted) | self.kept


def even_level(need: Tensor, q_sizes: Tensor, keys: Tensor) -> Tensor:
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
    spent, used = before(needs * weights), before(weights)
    level = ((keys * total - spent) / (total - used)).amin(-1, keepdim=True)
    return torch.maximum(need, level)


def spread_evenly(count: int, device: torch.device) -> Tensor:
    """Return (count,) float64 in (0, 1): evenly spaced values, neighbours far apart."""
    ids = torch.arange(count, device=device, dtype=torch.float64)
    shuffled = torch.argsort(torch.frac(ids * 0.6180339887498949))
    values = torch.empty_like(ids)
    values[shuffled] = (ids + 0.5) / max(count, 1)
    return values


def before(sizes: Tensor) -> Tensor:
    """Sum what precedes each entry of the last dimension."""
    return torch.nn.functional.pad(sizes.cumsum(-1)[..., :-1], (1, 0))
