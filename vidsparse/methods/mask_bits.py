"""Block masks as bits: what a method keeps from step to step takes an eighth of a bool mask."""

import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a mask along its last dimension, without a synchronisation.

    Args:
        mask: (..., N) bool.

    Returns:
        (..., ceil(N / 8)) uint8; bit i of byte j is element 8 j + i, bits past N are 0.
    """
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % 8))
    groups: Tensor = padded.unflatten(-1, (-1, 8)).to(torch.uint8)
    return (groups << _shifts(mask.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, length: int) -> Tensor:
    """Undo ``pack_bits``.

    Args:
        bits: (..., ceil(length / 8)) uint8.
        length: N, elements of the mask's last dimension.

    Returns:
        (..., length) bool.

    Raises:
        ValueError: the bits hold another number of elements.
    """
    if bits.shape[-1] != -(-length // 8):
        raise ValueError(
            f"{bits.shape[-1]} bytes cannot be a mask of {length} elements; it has "
            f"{-(-length // 8)} bytes"
        )
    wide = (bits[..., None] >> _shifts(bits.device)) & 1
    return wide.flatten(-2)[..., :length].to(torch.bool)


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
