"""Launch the Gluon kernel that assigns tokens to centroids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vidsparse.kernels.descriptors import gluon_descriptor, heads_descriptor
from vidsparse.kernels.hopper import _has_gluon
from vidsparse.kernels.launch import padded_head_size

# Tokens of one CTA: two consumer warpgroups of two halves of 64.
_HALF, _TOKENS = 64, 256


@dataclass(frozen=True)
class AssignConfig:
    """Shape of one CTA.

    Args:
        clusters: centroids per tile, 64 or 128.
        stages: depth of their ring, at least 2.
        registers: registers per consumer thread.
        max_registers: budget per thread over all warps.
    """

    clusters: int
    stages: int
    registers: int
    max_registers: int


# On an H200, one step of 40 heads of 75600 tokens: 0.96 ms for 300 clusters and 1.87 for 1000, with
# sorting and means. Tiles of 128 centroids spill 30 registers.
ASSIGN_GLUON = AssignConfig(64, 8, 240, 168)


def can_assign_gluon(x: Tensor) -> bool:
    """Tell whether the kernel runs: (B, H, S, D) tokens of 16 bits and one stride, on Hopper."""
    D = x.shape[-1]
    if not 32 < D <= 128 or heads_descriptor(x, 64, max(64, padded_head_size(D))) is None:
        return False
    return _has_gluon()


def assign_gluon(
    x: Tensor, centroids: Tensor, half_norms: Tensor, config: AssignConfig = ASSIGN_GLUON
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

    B, H, S, D = x.shape
    K, P, clusters = centroids.shape[2], max(64, padded_head_size(D)), config.clusters
    labels = torch.empty(B, H, S, dtype=torch.int32, device=x.device)
    tiles_per_head = -(-S // _TOKENS)
    tiles = B * H * tiles_per_head
    # A thread holds a quarter of a tile's columns; their numbers take the bits left out here.
    keep = -(clusters // 4)
    assign_kernel[(min(tiles, _multiprocessors(x.device)),)](
        gluon_descriptor(x.flatten(0, 1), [1, _HALF, P]),
        gluon_descriptor(centroids.flatten(0, 1), [1, clusters, P]),
        gluon_descriptor(half_norms.flatten(0, 1), [1, clusters]),
        labels, S, K, tiles_per_head, tiles, -(-K // clusters), keep,
        STAGES=config.stages, REGISTERS=config.registers,
        num_warps=4, maxnreg=config.max_registers,
    )  # fmt: skip
    return labels


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
