"""Launch the Gluon kernel that assigns tokens to centroids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vidsparse.kernels.descriptors import heads_descriptor
from vidsparse.kernels.hopper import _has_gluon
from vidsparse.kernels.hopper_8bit import gluon_descriptor
from vidsparse.kernels.launch import padded_head_size


@dataclass(frozen=True)
class AssignConfig:
    """Shape of one CTA.

    Args:
        groups: consumer warpgroups of 64 tokens, 2 or 3.
        clusters: centroids per tile, 64 or 128.
        stages: depth of their ring, at least 2.
        registers: registers per consumer thread.
        max_registers: budget per thread over all warps.
    """

    groups: int
    clusters: int
    stages: int
    registers: int
    max_registers: int


# By centroids per tile.
ASSIGN_GLUON = {
    64: AssignConfig(3, 64, 6, 160, 128),
    128: AssignConfig(3, 128, 4, 160, 128),
}


def assign_config(num_clusters: int) -> AssignConfig:
    """Return the configuration for K clusters: large tiles unless they leave much of one empty."""
    padded = {clusters: -(-num_clusters // clusters) * clusters for clusters in ASSIGN_GLUON}
    return ASSIGN_GLUON[128 if padded[128] <= 1.05 * padded[64] else 64]


def can_assign_gluon(x: Tensor) -> bool:
    """Tell whether the kernel runs: (B, H, S, D) tokens of 16 bits and one stride, on Hopper."""
    D = x.shape[-1]
    if not 32 < D <= 128 or heads_descriptor(x, 64, max(64, padded_head_size(D))) is None:
        return False
    return _has_gluon()


def assign_gluon(
    x: Tensor, centroids: Tensor, half_norms: Tensor, config: AssignConfig | None = None
) -> Tensor:
    """Return the (B, H, S) int32 nearest centroid of each token.

    Args:
        x: tokens that ``can_assign_gluon`` accepts.
        centroids: (B, H, K, D) in x's dtype, contiguous.
        half_norms: (B, H, K padded to whole tiles) float32, half their squared norms, huge in the
            padding.
        config: launch configuration, by default the table's.
    """
    from vidsparse.kernels.gluon_kmeans import assign_kernel

    B, H, S, D = x.shape
    K, P = centroids.shape[2], max(64, padded_head_size(D))
    config = assign_config(K) if config is None else config
    groups, clusters = config.groups, config.clusters
    labels = torch.empty(B, H, S, dtype=torch.int32, device=x.device)
    tiles_per_head = -(-S // (64 * groups))
    tiles = B * H * tiles_per_head
    # A thread holds a quarter of a tile's columns; their numbers take the bits left out here.
    keep = -(clusters // 4)
    assign_kernel[(min(tiles, _multiprocessors(x.device)),)](
        gluon_descriptor(x.flatten(0, 1), [1, 64, P]),
        gluon_descriptor(centroids.flatten(0, 1), [1, clusters, P]),
        gluon_descriptor(half_norms.flatten(0, 1), [1, clusters]),
        labels, S, K, tiles_per_head, tiles, -(-K // clusters), keep,
        GROUPS=groups, STAGES=config.stages, REGISTERS=config.registers,
        num_warps=4, maxnreg=config.max_registers,
    )  # fmt: skip
    return labels


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
