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
