"""Block masks as bits: what a method keeps from step to step takes an eighth of a bool mask."""

from vidsparse.kernels.bit_masks import mask_from_bits, pack_bits, unpack_bits

__all__ = ["mask_from_bits", "pack_bits", "unpack_bits"]
