"""What LiteAttention carries from step to step."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask
from vidsparse.layout import VideoLayout
from vidsparse.methods.blocks import BlockGeometry, raster_geometry
from vidsparse.methods.mask_bits import mask_from_bits, pack_bits, unpack_bits


@dataclass
class Tiles:
    """The tiles of one layer and branch since they were last all looked at.

    Attributes:
        layout: what they were cut from.
        step: step of their first call.
        blocks: (query, key) tokens of a tile.
        q_order: (B | 1, H | 1, S) int32 token order of the queries; None for the natural one.
        kv_order: the same for keys.
        bits: (B, H, Nq, ceil(Nkv / 8)) uint8, tiles that are still kept.
        full: no tile was left out yet, by a look or by a seed.
        skipped: (B, H, Nq) float32, the most attention per query that tiles held when they were
            dropped.
        backwards: visit the tiles from the last to the first.
        cut_to: density that the tiles were cut down to; None before, and with thresholds.
        lse: (B, H, ceil(S / 8)) float16 log-sum-exp of the call before, means of 8 queries.
    """

    layout: VideoLayout
    step: int
    blocks: tuple[int, int]
    q_order: Tensor | None
    kv_order: Tensor | None
    bits: Tensor
    full: bool
    skipped: Tensor
    backwards: bool = False
    cut_to: float | None = None
    lse: Tensor | None = None

    def geometry(self) -> BlockGeometry:
        """Return the tiles' sizes and those that always stay, as they lie in the tiles' order."""
        own = self.q_order is self.kv_order
        return raster_geometry(self.layout, self.blocks, self.bits.device, own=own)

    def kept(self) -> Tensor:
        """Return (B, H, Nq, Nkv) bool."""
        return unpack_bits(self.bits, -(-self.layout.num_tokens // self.blocks[1]))

    def mask(self) -> BlockMask:
        """Return the lists of kept tiles, in the direction that is due."""
        S = self.layout.num_tokens
        if self.full and not self.backwards:
            sides = {"block_q": self.blocks[0], "block_kv": self.blocks[1]}
            return BlockMask.full(**sides, seq_q=S, seq_kv=S, device=self.bits.device)
        return mask_from_bits(
            self.bits, blocks=self.blocks, seq_q=S, seq_kv=S, backwards=self.backwards
        )

    def error_bound(self) -> Tensor:
        """Return the most that outputs moved on average, 0-dim, in lengths of the longest value.

        It holds for tiles that still hold what they held when they were dropped: leaving out a
        share m of the attention moves an output by at most 2 m times the longest value vector.
        """
        return 2 * self.skipped.clamp(max=1).mean()

    def drop(self, light: Tensor, held: Tensor) -> None:
        """Stop keeping tiles.

        Args:
            light: (B, H, Nq, Nkv) bool; tiles that always stay are kept all the same.
            held: the most attention per query that each tile holds.
        """
        kept = self.kept()
        dropped = kept & light & ~self.geometry().forced
        self.take(pack_bits(kept & ~dropped), held.masked_fill(~dropped, 0.0).sum(-1))

    def take(self, bits: Tensor, held: Tensor) -> None:
        """Go on with fewer tiles, those dropped having ``held`` (B, H, Nq) of the attention."""
        self.bits, self.full = bits, False
        self.skipped = self.skipped + held


@dataclass
class LiteState:
    """One layer and branch of one generation.

    Attributes:
        tiles: None before the first call.
        seed: state of the method that the tiles start from.
    """

    tiles: Tiles | None = None
    seed: Any = None
