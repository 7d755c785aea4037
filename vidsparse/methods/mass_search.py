"""Find the attention mass of every block of a geometry, against a log-sum-exp of any age."""

from typing import TypedDict

from torch import Tensor

from vidsparse.kernels.block_statistics import block_mass, renew_stale_mass
from vidsparse.kernels.permute import permute_tokens
from vidsparse.methods.blocks import BlockGeometry


class BlockLengths(TypedDict):
    """Tokens per block, as the kernels take them."""

    block_q: int
    block_kv: int


def mass_against(lse: Tensor, q: Tensor, k: Tensor, geometry: BlockGeometry) -> Tensor:
    """Sum the softmax weights of every block.

    Args:
        lse: (B, H, S) float32 log-sum-exp of the queries, in the geometry's order.
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        geometry: token order and equal blocks.

    Returns:
        (B, H, Nq, Nkv) float32; rows sum to their queries where ``lse`` is exact.

    Raises:
        ValueError: the geometry's blocks are not equal.
    """
    return block_mass(*_ordered(q, k, geometry), lse, **_lengths(geometry))


def mass_against_old(
    lse: Tensor, q: Tensor, k: Tensor, geometry: BlockGeometry, *, stale_factor: float
) -> tuple[Tensor, Tensor]:
    """Do as ``mass_against``, and compute again what an old log-sum-exp spoils.

    Args:
        lse: (B, H, S) float32, as of an earlier step.
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        geometry: token order and equal blocks.
        stale_factor: how far the sum of a row of blocks may be off, above 1.

    Returns:
        The log-sum-exp, exact in stale rows of blocks, and the mass.

    Raises:
        ValueError: the geometry's blocks are not equal.
    """
    q, k = _ordered(q, k, geometry)
    lengths = _lengths(geometry)
    mass = block_mass(q, k, lse, **lengths)
    drift = mass.sum(-1) / geometry.q.sizes
    # Written so that NaN and infinity are stale too.
    stale = ~((drift < stale_factor) & (drift > 1 / stale_factor))
    return renew_stale_mass(q, k, lse, mass, stale, **lengths)


def _lengths(geometry: BlockGeometry) -> BlockLengths:
    q, kv = geometry.q.block, geometry.kv.block
    if q is None or kv is None:
        raise ValueError("a mass search needs equal blocks, as raster and strip geometries have")
    return {"block_q": q, "block_kv": kv}


def _ordered(q: Tensor, k: Tensor, geometry: BlockGeometry) -> tuple[Tensor, Tensor]:
    if geometry.q.order is None:
        return q, k
    order = geometry.q.order.view(1, 1, -1)
    return permute_tokens(q, order), permute_tokens(k, order)
