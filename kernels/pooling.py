"""Average tokens over blocks of a token order, straight from the natural order."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.block_statistics import block_means
from vidsparse.kernels.permute import permute_tokens


def pooled_means(
    x: Tensor,
    offsets: Tensor,
    *,
    order: Tensor | None = None,
    block: int | None = None,
    squares: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Average the tokens of each block, and their squares.

    On a GPU the tokens are read once and no permuted copy is made.

    Args:
        x: (B, H, S, D) in natural order, last dimension contiguous.
        offsets: (N + 1,) int32, first position of each block in the order, and S.
        order: (S,) int32, natural index of the token at each position; None for natural order.
        block: tokens per block when all but a smaller last one are equal.
        squares: also average the squares.

    Returns:
        Means and mean squares, (B, H, N, D) float32; None without ``squares``.
    """
    if triton_is_native(x.device):
        from vidsparse.kernels.triton_pooling import pooled_means_triton

        return pooled_means_triton(x, offsets, order=order, squares=squares)
    if order is not None:
        x = permute_tokens(x, order.view(1, 1, -1))
    means = _means(x, offsets, block)
    return means, _means(x.float().square(), offsets, block) if squares else None


def _means(x: Tensor, offsets: Tensor, block: int | None) -> Tensor:
    if block is None:
        return block_means(x, offsets=offsets.view(1, 1, -1))
    whole = x.shape[2] // block * block
    parts = [x[:, :, :whole].unflatten(2, (-1, block)).mean(3, dtype=torch.float32)]
    if whole < x.shape[2]:
        parts.append(x[:, :, whole:].mean(2, keepdim=True, dtype=torch.float32))
    return torch.cat(parts, 2)
