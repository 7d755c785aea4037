"""Tensor descriptors: tiles that Hopper's copy engine moves, without address arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidsparse.kernels.launch import architecture


def heads_descriptor(x: Tensor, rows: int, columns: int) -> Any:
    """Describe (B, H, S, D) as B * H matrices read in (rows, columns) tiles, or return None.

    None means that the device has no copy engine or the strides do not suit it: the caller then
    computes addresses. Tiles read past S or D are filled with zeros.
    """
    if architecture(x.device) != "sm90" or x.dtype not in (torch.bfloat16, torch.float16):
        return None
    B, H = x.shape[:2]
    if B > 1 and H > 1 and x.stride(0) != H * x.stride(1):
        return None
    if x.data_ptr() % 16 or x.stride(-1) != 1 or any(s % 8 for s in x.stride()[:3]):
        return None
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x.flatten(0, 1), [1, rows, columns])


def gluon_descriptor(x: Tensor, block: list[int]) -> Any:
    """Describe a tensor read in tiles of up to three dimensions, the last of one stride.

    Tiles lie swizzled in shared memory, as matrix products of their element size need them; float32
    tiles lie as they are.
    """
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    bits = 8 * x.element_size()
    swizzle = 0 if bits == 32 else min(128, block[-1] * x.element_size())
    layout = gl.NVMMASharedLayout(
        swizzle_byte_width=swizzle, element_bitwidth=bits, rank=len(block)
    )
    return TensorDescriptor.from_tensor(x, block, layout)


def head_groups(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Split tensors into groups of heads with one stride, as few as possible.

    Args:
        tensors: the first leads with (B, H), the others with that or with what their values are
            shared by: 1 stands for all batch rows or heads.

    Returns:
        Groups of views that lead with their heads: one group, or one for each batch row.
    """
    B, H = tensors[0].shape[:2]
    if B > 1 and all(x.shape[:2] in ((1, 1), (B, H)) and _has_one_stride(x) for x in tensors):
        return [tuple(x.flatten(0, 1) for x in tensors)]
    return [tuple(x[b % len(x)] for x in tensors) for b in range(B)]


def _has_one_stride(x: Tensor) -> bool:
    return 1 in x.shape[:2] or x.stride(0) == x.shape[1] * x.stride(1)
