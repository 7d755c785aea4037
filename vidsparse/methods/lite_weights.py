"""What LiteAttention's tiles weigh, by each criterion, and the most that they hold."""

import torch
from torch import Tensor

from vidsparse.kernels.running_statistics import RunningStat
from vidsparse.kernels.tile_drop import TileScales
from vidsparse.methods.blocks import BlockGeometry
from vidsparse.methods.lite_thresholds import Criterion

# Queries that share one remembered log-sum-exp.
_LSE_GROUP = 8

RUNNING: dict[Criterion, RunningStat] = {
    "running_max": RunningStat.MAX,
    "running_mass": RunningStat.MASS,
}


def tile_scales(
    criterion: Criterion, stats: Tensor, geometry: BlockGeometry, drift: Tensor | None
) -> TileScales:
    """Say how the kernel's statistic is read.

    A mass then weighs in multiples of the even share of attention, and a tile holds its share per
    query. A tile of logits at most 2^gap of the row's largest holds at most that per key.

    Args:
        criterion: which statistic it is.
        stats: (B, H, Nq, Nkv) float32, as the kernel gave it.
        geometry: sizes of the tiles.
        drift: (B, H, Nq), for "previous_mass": what masses may be too small by.
    """
    by_query = geometry.q.sizes.float().reciprocal().expand(stats.shape[:3])
    if criterion == "running_max":
        return TileScales(by_query, geometry.kv.sizes.float(), by_query, gaps=True)
    by_key = geometry.kv.num_tokens / geometry.kv.sizes.float()
    if drift is None:
        return TileScales(by_query, by_key, by_query)
    # What a row of tiles drifted by as a whole since the step before does not count.
    return TileScales(stats.sum(-1).reciprocal(), by_key, drift * by_query)


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
