"""Rank blocks by what compensation would get wrong about them, and say where it is exact.

A skipped key block J with keys k_j and values v_j adds sum_j exp(q.k_j) v_j to a query's numerator.
Compensation knows that sum and its gradient at one query t_J, its tangent. For other queries it
errs, to second order, by the block's mass times half the variance of (q - t_J).k_j, in the
direction of the values' spread. Everything here comes from means and variances of blocks.
"""

from dataclasses import dataclass

from torch import Tensor

from vidsparse.kernels.pooled_mass import group_means, pooled_mass
from vidsparse.kernels.pooling import pooled_means
from vidsparse.methods.blocks import BlockGeometry

# Pooled queries per query block at most: more find little and cost as much each.
_POOLS = 16


@dataclass(frozen=True)
class BlockMoments:
    """Means and variances of the blocks of one call, float32, channels as in q and k.

    Attributes:
        pools: (B, H, M, D) means of a few neighbouring queries each, in the queries' dtype.
        group: pools per query block.
        q_means: (B, H, Nq, D).
        q_squares: (B, H, Nq, D) mean squares of the pools.
        k_means: (B, H, Nkv, D).
        k_variances: (B, H, Nkv, D) within each block.
        v_spread: (B, H, Nkv) root of the summed variances of the values' channels.
    """

    pools: Tensor
    group: int
    q_means: Tensor
    q_squares: Tensor
    k_means: Tensor
    k_variances: Tensor
    v_spread: Tensor


def block_moments(q: Tensor, k: Tensor, v: Tensor, geometry: BlockGeometry) -> BlockMoments:
    """Read q, k and v once and take the moments of their blocks.

    Args:
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        v: (B, H, S, D) values.
        geometry: equal blocks, the last one of each side may be smaller.

    Raises:
        ValueError: the blocks differ in size.
    """
    block = geometry.q.block
    if block is None:
        raise ValueError("query blocks differ in size; give a geometry of equal blocks")
    group = pools_per_block(block)
    pools, _ = pooled_means(q, geometry.q.pools(block // group), order=geometry.q.order,
                            block=block // group)  # fmt: skip
    (k_means, k_variances), (_, v_variances) = (_moments(x, geometry) for x in (k, v))
    return BlockMoments(
        pools=pools.to(q.dtype),
        group=group,
        q_means=group_means(pools, group),
        q_squares=group_means(pools.square(), group),
        k_means=k_means,
        k_variances=k_variances,
        v_spread=v_variances.sum(-1).sqrt(),
    )


def pools_per_block(block: int) -> int:
    """Return how many equal pools a query block is cut into: a power of two."""
    return min(_POOLS, block & -block)


def estimated_mass(moments: BlockMoments, geometry: BlockGeometry) -> Tensor:
    """Return (B, H, Nq, Nkv) float32, the attention of the pools to mean keys, row sums 1."""
    log_sizes = geometry.kv.sizes.float().log()
    return pooled_mass(moments.pools, moments.k_means, log_sizes, group=moments.group)


def tangents(weights: Tensor, q_means: Tensor) -> Tensor:
    """Return, for each key block, the mean of the query blocks that look at it.

    Args:
        weights: (B, H, Nq, Nkv) float32, at least 0: how much each query block counts.
        q_means: (B, H, Nq, D) float32.

    Returns:
        (B, H, Nkv, D) float32; 0 for key blocks without any weight.
    """
    total = weights.sum(-2)[..., None]
    return (weights.mT @ q_means) / total.masked_fill(total == 0, 1)


def compensation_error(mass: Tensor, moments: BlockMoments, around: Tensor) -> Tensor:
    """Estimate the output's error when a block is skipped and compensated.

    Args:
        mass: (B, H, Nq, Nkv) float32 share of each block.
        moments: of the blocks.
        around: (B, H, Nkv, D) float32 tangents, where compensation is exact.

    Returns:
        (B, H, Nq, Nkv) float32, at least 0: mass times the variance of the logits around the
        tangent, channels taken as independent, times the spread of the values.
    """
    variances = moments.k_variances / around.shape[-1]
    spread = moments.q_squares @ variances.mT
    spread -= 2 * moments.q_means @ (around * variances).mT
    spread += (around.square() * variances).sum(-1)[:, :, None]
    return spread.clamp_(min=0).mul_(mass).mul_(moments.v_spread[:, :, None])


def _moments(x: Tensor, geometry: BlockGeometry) -> tuple[Tensor, Tensor]:
    cut = geometry.kv
    means, squares = pooled_means(x, cut.offsets, order=cut.order, block=cut.block, squares=True)
    if squares is None:
        raise ValueError("pooled_means gave no squares")
    return means, squares.sub_(means.square()).clamp_(min=0)
