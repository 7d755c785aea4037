"""Block masks as bits: an eighth of a bool mask, and lists straight from them."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.compact_lists import compact_lists


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a mask along its last dimension, without a synchronisation.

    Args:
        mask: (..., N) bool.

    Returns:
        (..., ceil(N / 8)) uint8; bit i of byte j is element 8 j + i, bits past N are 0.
    """
    if triton_is_native(mask.device):
        from vidsparse.kernels.triton_bit_masks import pack_bits_triton

        return pack_bits_triton(mask)
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
    _check_length(bits, length)
    wide = (bits[..., None] >> _shifts(bits.device)) & 1
    return wide.flatten(-2)[..., :length].to(torch.bool)


def mask_from_bits(
    bits: Tensor, *, blocks: tuple[int, int], seq_q: int, seq_kv: int, backwards: bool = False
) -> BlockMask:
    """Build a mask's lists from its bits.

    Args:
        bits: (B, H, Nq, ceil(Nkv / 8)) uint8.
        blocks: (query, key) tokens per block.
        seq_q: number of query tokens.
        seq_kv: number of key tokens.
        backwards: list the blocks from the last but one down to the first, so that kernels visit
            them the other way round. The last block stays last, where kernels expect a partial
            one; ``BlockMask.validate`` knows ascending lists only.

    Raises:
        ValueError: the bits hold another number of blocks.
    """
    N = -(-seq_kv // blocks[1])
    _check_length(bits, N)
    if triton_is_native(bits.device):
        from vidsparse.kernels.triton_bit_masks import lists_from_bits_triton

        counts, indices = lists_from_bits_triton(bits, N, backwards=backwards)
        return BlockMask(counts, indices, *blocks, seq_q, seq_kv)
    kept = unpack_bits(bits, N)
    if not backwards:
        return BlockMask(*compact_lists(kept), *blocks, seq_q, seq_kv)
    turned = torch.cat((kept[..., :-1].flip(-1), kept[..., -1:]), -1)
    counts, slots = compact_lists(turned)
    indices = torch.where(slots < N - 1, N - 2 - slots, slots)
    return BlockMask(counts, indices, *blocks, seq_q, seq_kv)


def _check_length(bits: Tensor, length: int) -> None:
    if bits.shape[-1] != -(-length // 8):
        raise ValueError(
            f"{bits.shape[-1]} bytes cannot be a mask of {length} elements; it has "
            f"{-(-length // 8)} bytes"
        )


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
