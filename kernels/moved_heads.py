"""Heads that attend in an order of their own beside heads that stay as they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MovedHeads(NamedTuple):
    """What attention needs to follow the token orders of some heads itself.

    Queries, output and LSE stay in natural order: row i of the mask is query ``q_order[i]``. Keys
    and values of moved heads are copied, those of other heads are read where they are. Which heads
    move is only known on the device.

    Args:
        heads: (B, H) bool, contiguous, heads whose keys and values are read from ``k`` and ``v``.
        q_order: (B, H, Sq) int32, contiguous, natural index of the query at each position; the
            identity where the order of a head is the natural one.
        k: (B, H, Skv, D) contiguous, moved keys; unspecified in other heads.
        v: (B, H, Skv, D) contiguous, moved values, likewise.
    """

    heads: Tensor
    q_order: Tensor
    k: Tensor
    v: Tensor

    def reasons(self, q: Tensor, k: Tensor) -> list[str]:
        """List why it does not fit queries (B, H, Sq, D) and keys (B, H, Skv, D)."""
        wanted = {
            "heads": (q.shape[:2], torch.bool),
            "q_order": (q.shape[:3], torch.int32),
            "k": (k.shape, k.dtype),
            "v": (k.shape, k.dtype),
        }
        reasons = []
        for name, (shape, dtype) in wanted.items():
            x: Tensor = getattr(self, name)
            if (x.shape, x.dtype, x.device) != (shape, dtype, q.device) or not x.is_contiguous():
                reasons.append(
                    f"moved.{name} is {(tuple(x.shape), x.dtype, x.device)} with strides "
                    f"{x.stride()}; give {(tuple(shape), dtype, q.device)}, contiguous"
                )
        return reasons
