"""The VAE's arithmetic rearranged for training speed; results and weights stay the same.

Weights lie channels-last, and normalisation and SiLU become one compiled kernel. A VAE changed here
is for training only: load its weights into a fresh `parts.build_vae` for use in a pipeline.
"""

from types import MethodType

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
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


def speed_up(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Change the modules in place; only for whole clips (`parts.whole_clip`)."""
    for module in vae.modules():
        if isinstance(module, WanResidualBlock | WanEncoder3d | WanDecoder3d):
            module.nonlinearity = nn.Identity()
            for name in ("norm1", "norm2", "norm_out"):
                norm = getattr(module, name, None)
                if norm is not None:
                    norm.forward = MethodType(_fused_norm, norm)
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae
