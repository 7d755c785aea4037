"""The VAE's arithmetic rearranged for training speed; results and weights stay the same.

Causal 3-D convolutions become 2-D ones over three stacked frames, in channels-last layout, and
normalisation and SiLU become one compiled kernel. A VAE changed here is for training only: load its
weights into a fresh `parts.build_vae` for use in a pipeline.
"""

from types import MethodType

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanDecoder3d,
    WanEncoder3d,
    WanResidualBlock,
    WanRMS_norm,
)
from torch import Tensor, nn


def _norm_silu(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).sum(1, keepdim=True) + 1e-12) * gain
    return F.silu(wide).to(x.dtype)


_norm_silu_compiled = torch.compile(_norm_silu, dynamic=True)


def _fused_norm(self: WanRMS_norm, x: Tensor) -> Tensor:
    fuse = _norm_silu_compiled if x.is_cuda else _norm_silu
    return fuse(x, self.gamma.float() * self.scale)


def _stacked_conv(self: WanCausalConv3d, x: Tensor, cache_x: None = None) -> Tensor:
    """Convolve (B, C, T, H, W) causally as a 2-D convolution over 3 C channels."""
    B, C, T, H, W = x.shape
    x = F.pad(x, (0, 0, 0, 0, 2, 0))
    near = torch.cat([x[:, :, k : k + T] for k in range(3)], dim=1)
    flat = near.permute(0, 2, 1, 3, 4).reshape(B * T, 3 * C, H, W)
    flat = flat.contiguous(memory_format=torch.channels_last)
    weight = self.weight.permute(0, 2, 1, 3, 4).reshape(-1, 3 * C, 3, 3)
    out = F.conv2d(flat, weight, self.bias, padding=1)
    return out.view(B, T, -1, H, W).permute(0, 2, 1, 3, 4)


def speed_up(vae: AutoencoderKLWan, *, stacked: bool, fused: bool) -> AutoencoderKLWan:
    """Change the modules in place; only for whole clips (`parts.whole_clip`)."""
    for module in vae.modules():
        cubic = isinstance(module, WanCausalConv3d) and module.kernel_size == (3, 3, 3)
        if stacked and cubic:
            module.forward = MethodType(_stacked_conv, module)
        if fused and isinstance(module, WanResidualBlock | WanEncoder3d | WanDecoder3d):
            module.nonlinearity = nn.Identity()
            for name in ("norm1", "norm2", "norm_out"):
                norm = getattr(module, name, None)
                if norm is not None:
                    norm.forward = MethodType(_fused_norm, norm)
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae
