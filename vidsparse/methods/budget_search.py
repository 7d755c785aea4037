"""Searches behind the budgets: a level of keys for the rows of a map."""

import torch
from torch import Tensor


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
