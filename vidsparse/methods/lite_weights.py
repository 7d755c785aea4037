"""What LiteAttention's tiles weigh, by each criterion, and the most that they hold."""

import torch
from torch import Tensor

from vidsparse.kernels.running_statistics import RunningStat
from vidsparse.methods.blocks import BlockGeometry
from vidsparse.methods.lite_thresholds import Criterion

# Queries that share one remembered log-sum-exp.
_LSE_GROUP = 8

RUNNING: dict[Criterion, RunningStat] = {
    "running_max": RunningStat.MAX,
    "running_mass": RunningStat.MASS,
}


def weigh(
    criterion: Criterion,
    stats: Tensor,
    geometry: BlockGeometry,
    drift: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Read the kernel's statistic.

    Args:
        criterion: which one it is.
        stats: (B, H, Nq, Nkv) float32, as the kernel gave it.
        geometry: sizes of the tiles.
        drift: (B, H, Nq), for "previous_mass": what masses may be too small by.

    Returns:
        Each tile's weight in the threshold's unit, and the most attention per query that it holds,
        a share; both (B, H, Nq, Nkv) float32.
    """
    if criterion == "running_max":
        # No key weighs more than 2^gap of the row's largest, and no largest more than 1.
        return stats, (stats.exp2() * geometry.kv.sizes).clamp(max=1)
    share = stats / geometry.q.sizes[:, None]
    even = geometry.kv.sizes / geometry.kv.num_tokens
    if drift is None:
        return share / even, share
    # What a row of tiles drifted by as a whole since the step before does not count.
    total = stats.sum(-1, keepdim=True)
    return stats / total / even, share * drift[..., None]


def group_lse(lse: Tensor) -> Tensor:
    """Return the (B, H, ceil(S / 8)) float16 means of a (B, H, S) log-sum-exp."""
    short = -lse.shape[-1] % _LSE_GROUP
    filled = torch.cat((lse, lse[..., -1:].expand(*lse.shape[:-1], short)), -1)
    means: Tensor = filled.unflatten(-1, (-1, _LSE_GROUP)).mean(-1)
    return means.half()


def spread_lse(means: Tensor, num_tokens: int) -> Tensor:
    """Give every query its group's mean: (B, H, S) float32."""
    wide = means.float()[..., None].expand(*means.shape, _LSE_GROUP)
    return wide.flatten(-2)[..., :num_tokens].contiguous()


def largest_drift(reference: Tensor, lse: Tensor, block: int) -> Tensor:
    """Return (B, H, Nq), the largest factor by which masses against ``reference`` are too small.

    Args:
        reference: (B, H, S) float32 log-sum-exp that masses were taken against.
        lse: (B, H, S) float32, the true one.
        block: query tokens per block.
    """
    drift = torch.nn.functional.pad(reference - lse, (0, -lse.shape[-1] % block), value=-torch.inf)
    worst: Tensor = drift.unflatten(-1, (-1, block)).amax(-1)
    return worst.exp()
