"""Searches behind the budgets: a level for rows, a threshold for all heads of a layer."""

import torch
from torch import Tensor

# Halvings of the range of 32-bit keys: what remains is one key, the search is exact.
_KEY_BITS = 32


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


def keep_across_heads(scores: Tensor, pairs: Tensor, targets: Tensor) -> Tensor:
    """Keep the highest scores of all heads of a batch row until their pairs reach a target.

    The twin of ``keep_top_weight`` for a few very long rows, which no single program of a GPU
    could read in time. Of equal scores the lower head, row and column come first.

    Args:
        scores: (B, H, Nq, Nkv) float32.
        pairs: float32, broadcastable to the scores, what each entry weighs.
        targets: (B, 1, 1, 1) float64.

    Returns:
        (B, H, Nq, Nkv) bool, made on the device without a synchronisation.
    """
    keys = _sortable(scores)
    low = torch.full_like(targets, -(2**31), dtype=torch.int64)
    high = torch.full_like(low, 2**31 - 1)
    for _ in range(_KEY_BITS):
        middle = (low + high) // 2
        enough = _weight(keys >= middle.int(), pairs) >= targets
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    above, ties = keys >= high.int(), keys == low.int()
    missing = targets - _weight(above, pairs)
    return above | (ties & (_weight_before(ties, pairs) < missing))


def _sortable(scores: Tensor) -> Tensor:
    """Return int32 keys in the order of the float32 scores; both zeros are one."""
    bits = (scores + 0.0).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _weight(chosen: Tensor, pairs: Tensor) -> Tensor:
    return torch.where(chosen, pairs, 0).sum((1, 2, 3), keepdim=True, dtype=torch.float64)


def _weight_before(chosen: Tensor, pairs: Tensor) -> Tensor:
    """Return (B, H, Nq, Nkv) float64, the weight of what is chosen ahead of each entry."""
    weights = torch.where(chosen, pairs, 0).double()
    rows = before(weights.sum(-1).flatten(1)).view(*weights.shape[:3], 1)
    return rows + before(weights)
