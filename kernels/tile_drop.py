"""Clear the bits of tiles that weigh too little, and count what they held."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.bit_masks import pack_bits, unpack_bits


@dataclass(frozen=True)
class TileScales:
    """How statistics of tiles are read.

    A mass weighs ``stats * q * kv`` and the tile holds ``stats * held``. A gap, a difference of
    base-2 logits, weighs itself, and the tile holds ``2^stats * kv``, at most 1.

    Attributes:
        q: (B, H, Nq) float32.
        kv: (Nkv,) float32.
        held: (B, H, Nq) float32.
        gaps: statistics are gaps, not masses.
    """

    q: Tensor
    kv: Tensor
    held: Tensor
    gaps: bool = False


def drop_light_tiles(
    bits: Tensor, stats: Tensor, forced: Tensor, threshold: float, scales: TileScales
) -> tuple[Tensor, Tensor]:
    """Drop tiles that weigh at most a threshold.

    Args:
        bits: (B, H, Nq, ceil(Nkv / 8)) uint8, tiles kept so far.
        stats: (B, H, Nq, Nkv) float32; NaN is kept.
        forced: (Nq, Nkv) bool, tiles that are never dropped.
        threshold: tiles that weigh as much or less go.
        scales: what tiles weigh and hold.

    Returns:
        The new bits, and (B, H, Nq) float32, what the dropped tiles of each row held.
    """
    if triton_is_native(bits.device):
        from vidsparse.kernels.triton_tile_drop import drop_light_tiles_triton

        return drop_light_tiles_triton(bits, stats, forced, threshold, scales)
    weight, held = tile_weights(stats, scales)
    kept = unpack_bits(bits, stats.shape[-1])
    dropped = kept & (weight <= threshold) & ~forced
    return pack_bits(kept & ~dropped), held.masked_fill(~dropped, 0.0).sum(-1)


def tile_weights(stats: Tensor, scales: TileScales) -> tuple[Tensor, Tensor]:
    """Return what each tile weighs and holds, (B, H, Nq, Nkv) float32."""
    if scales.gaps:
        return stats, (stats.exp2() * scales.kv).clamp(max=1)
    weight: Tensor = stats * scales.q[..., None] * scales.kv
    return weight, stats * scales.held[..., None]
