"""Average tokens over blocks of a token order, straight from the natural order."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.block_statistics import block_means
from vidsparse.kernels.permute import permute_tokens

# Tokens per mean that are averaged while they are moved; other numbers take a pass of their own.
FUSED_UNITS = (1, 2, 4, 8, 16, 32, 64, 128)


class PooledTokens(NamedTuple):
    """Tokens in an order, and averages over runs of them.

    Args:
        tokens: (B, H, S, D) in the order, contiguous.
        means: (B, H, ceil(S / unit), D).
        variances: within each run, as (B, H, ceil(S / unit), D) or, float32, as
            (B, H, ceil(S / unit)) summed over the channels; or None.
    """

    tokens: Tensor
    means: Tensor
    variances: Tensor | None


Variances = Literal["channels", "total"]


def permute_and_pool(
    x: Tensor,
    order: Tensor,
    unit: int,
    *,
    variances: Variances | None = None,
    dtype: torch.dtype = torch.float32,
) -> PooledTokens:
    """Bring tokens into an order and average every ``unit`` of them in the same pass.

    Args:
        x: (B, H, S, D) in natural order, last dimension contiguous.
        order: (S,) int32, natural index of the token at each position.
        unit: tokens per mean, at least 1; the last mean may be of fewer.
        variances: also take the variances, of each channel or their sum.
        dtype: of the means and of the channels' variances.
    """
    if triton_is_native(x.device) and unit in FUSED_UNITS:
        from vidsparse.kernels.triton_pooling import permute_and_pool_triton

        return PooledTokens(*permute_and_pool_triton(x, order, unit, variances, dtype))
    tokens = permute_tokens(x, order.view(1, 1, -1))
    S = x.shape[2]
    offsets = torch.arange(-(-S // unit) + 1, dtype=torch.int32, device=x.device) * unit
    pooled = pooled_means(
        tokens, offsets.clamp_(max=S), block=unit, variances=variances is not None
    )
    means, spread = pooled[0].to(dtype), pooled[1]
    if spread is not None:
        spread = spread.sum(-1) if variances == "total" else spread.to(dtype)
    return PooledTokens(tokens, means, spread)


def pooled_means(
    x: Tensor,
    offsets: Tensor,
    *,
    order: Tensor | None = None,
    block: int | None = None,
    variances: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Average the tokens of each block, and take each channel's variance.

    On a GPU the tokens are read once and no permuted copy is made.

    Args:
        x: (B, H, S, D) in natural order, last dimension contiguous.
        offsets: (N + 1,) int32, first position of each block in the order, and S.
        order: (S,) int32, natural index of the token at each position; None for natural order.
        block: tokens per block when all but a smaller last one are equal.
        variances: also take the variances.

    Returns:
        Means and variances, (B, H, N, D) float32; None without ``variances``.
    """
    if triton_is_native(x.device):
        from vidsparse.kernels.triton_pooling import pooled_means_triton

        return pooled_means_triton(x, offsets, order=order, variances=variances)
    if order is not None:
        x = permute_tokens(x, order.view(1, 1, -1))
    means = _means(x, offsets, block)
    if not variances:
        return means, None
    squares = _means(x.float().square(), offsets, block)
    return means, squares.addcmul_(means, means, value=-1).clamp_(min=0)


def _means(x: Tensor, offsets: Tensor, block: int | None) -> Tensor:
    if block is None:
        return block_means(x, offsets=offsets.view(1, 1, -1))
    whole = x.shape[2] // block * block
    parts = [x[:, :, :whole].unflatten(2, (-1, block)).mean(3, dtype=torch.float32)]
    if whole < x.shape[2]:
        parts.append(x[:, :, whole:].mean(2, keepdim=True, dtype=torch.float32))
    return torch.cat(parts, 2)
