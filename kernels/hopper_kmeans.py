"""Launch the Gluon kernel that assigns tokens to centroids."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from vidsparse.kernels.descriptors import heads_descriptor
from vidsparse.kernels.hopper import _has_gluon
from vidsparse.kernels.hopper_8bit import gluon_descriptor
from vidsparse.kernels.launch import padded_head_size

# (warpgroups of 64 tokens, centroids per tile, stages, registers per consumer thread, registers per
# thread over all warps). On an H100, 40 heads of 75600 tokens: 1.59 ms for 1000 centroids and 0.57
# for 300; (2, 128, 4, 240, 168) takes 1.56 and 0.75, the Triton kernel 2.34 and 1.10.
ASSIGN_GLUON = (3, 64, 4, 160, 128)


def can_assign_gluon(x: Tensor) -> bool:
    """Tell whether the kernel runs: (B, H, S, D) tokens of 16 bits and one stride, on Hopper."""
    D = x.shape[-1]
    if not 32 < D <= 128 or heads_descriptor(x, 64, max(64, padded_head_size(D))) is None:
        return False
    return _has_gluon()


def assign_gluon(
    x: Tensor,
    centroids: Tensor,
    half_norms: Tensor,
    config: tuple[int, int, int, int, int] = ASSIGN_GLUON,
) -> Tensor:
    """Return the (B, H, S) int32 nearest centroid of each token.

    Args:
        x: tokens that ``can_assign_gluon`` accepts.
        centroids: (B, H, K, D) in x's dtype, contiguous.
        half_norms: (B, H, K padded to whole tiles) float32, half their squared norms, huge in the
            padding.
        config: launch configuration.
    """
    from vidsparse.kernels.gluon_kmeans import assign_kernel

    groups, clusters, stages, registers, max_registers = config
    B, H, S, D = x.shape
    K, P = centroids.shape[2], max(64, padded_head_size(D))
    labels = torch.empty(B, H, S, dtype=torch.int32, device=x.device)
    tiles_per_head = -(-S // (64 * groups))
    tiles = B * H * tiles_per_head
    assign_kernel[(min(tiles, _multiprocessors(x.device)),)](
        gluon_descriptor(x.flatten(0, 1), [1, 64, P]),
        gluon_descriptor(centroids.flatten(0, 1), [1, clusters, P]),
        gluon_descriptor(half_norms.flatten(0, 1), [1, clusters]),
        labels, S, K, tiles_per_head, tiles, -(-K // clusters),
        GROUPS=groups, STAGES=stages, REGISTERS=registers,
        num_warps=4, maxnreg=max_registers,
    )  # fmt: skip
    return labels


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
