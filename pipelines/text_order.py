"""Move the padding of a text behind its real tokens and back, for texts padded in front."""

import torch
from torch import Tensor


def order_of(mask: Tensor) -> Tensor | None:
    """Say which text token stands where once real ones come first.

    Args:
        mask: (B, T) zeros and ones, one for a real token; waits for its device.

    Returns:
        (B, T) int64 indices; None when the padding of every row is at its end already.
    """
    order = mask.bool().int().argsort(dim=1, descending=True, stable=True)
    natural = torch.arange(mask.shape[1], device=mask.device)
    return None if bool((order == natural).all()) else order


def move_text(x: Tensor, order: Tensor, start: int) -> Tensor:
    """Reorder the tokens from ``start`` on of each row: (B, H, S, D) in and out."""
    text = x[:, :, start:]
    moved = text.gather(2, order[:, None, :, None].expand_as(text))
    return torch.cat((x[:, :, :start], moved), dim=2)


def move_back(x: Tensor, order: Tensor, start: int) -> Tensor:
    """Undo ``move_text``."""
    inverse = torch.empty_like(order)
    natural = torch.arange(order.shape[1], device=order.device).expand_as(order)
    inverse.scatter_(1, order, natural)
    return move_text(x, inverse, start)
