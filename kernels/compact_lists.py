"""Turn boolean rows into lists of their True columns on the device, without a synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native


def compact_lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """List the True columns of each row in ascending order.

    Args:
        mask: (..., N) bool.

    Returns:
        Counts (...) int32 and indices (..., N) int32; entries past the count are unspecified
        columns within range.
    """
    if triton_is_native(mask.device):
        from vidsparse.kernels.triton_lists import compact_lists_triton

        return compact_lists_triton(mask)
    counts = mask.sum(-1, dtype=torch.int32)
    # A stable sort puts the True columns first and keeps their order.
    order = torch.sort(mask.logical_not().to(torch.uint8), dim=-1, stable=True).indices
    return counts, order.to(torch.int32)
