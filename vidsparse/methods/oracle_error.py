"""The best blocks by the true error of compensating for them: the control of error ranking."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidsparse.kernels.block_means import KeyValueMeans, key_value_means
from vidsparse.kernels.permute import permute_qkv
from vidsparse.kernels.pooling import pooled_means
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod, register
from vidsparse.methods.block_error import tangents
from vidsparse.methods.blocks import BlockGeometry
from vidsparse.methods.budget import flat_top_k
from vidsparse.methods.compensated import Compensated
from vidsparse.methods.oracle import exact_mass
from vidsparse.plan import AttentionPlan, CallSite

# Bytes of the (heads, rows, key blocks, D) numerators that exist at once.
_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}


@register
@dataclass(frozen=True)
class OracleError(SparseMethod):
    """Compute what skipping and compensating each block does to the output, then keep the worst.

    Much slower than dense attention; it says how well any ranking of these blocks can do, to first
    order: errors of blocks are taken as independent.

    Attributes:
        density: kept share of query-key pairs, text and own blocks included, in (0, 1].
        tangents: compensate with means as the queries weigh the keys; else with plain means.
        frames: frames that a block reaches over; None makes blocks about as deep as wide.
        blocks: (query, key) tokens per block; None takes what ``compensated`` does.
        compensate: let skipped blocks count through their means.
    """

    name: ClassVar[str] = "oracle-error"
    summary: ClassVar[str] = "top blocks by true error after compensation: the ceiling of ranking"
    source: ClassVar[str] = "control"

    tangents: bool = True
    frames: int | None = None
    blocks: tuple[int, int] | None = None
    compensate: bool = field(default=True, kw_only=True)

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Choose the blocks of one call by the error they would leave."""
        if self.density == 1:
            return None
        geometry = self._geometry(q, layout)
        geometry.check(self.density)
        mass = exact_mass(q, k, geometry)
        q_means = _query_means(q, geometry)
        plan = geometry.plan(geometry.forced.expand(*q.shape[:2], -1, -1))
        q, k, v = permute_qkv(q, k, v, plan.q_order, plan.kv_order)
        around = tangents(mass, q_means) if self.tangents else None
        means = key_value_means(k, v, plan.mask, around)
        error = block_errors(q, k, v, means, geometry)
        sizes = geometry.q.sizes, geometry.kv.sizes
        kept = flat_top_k(error, self.density, *sizes, forced=geometry.forced)
        plan = geometry.plan(kept)
        if not (self.tangents and self.compensate):
            return plan
        return replace(plan, tangents=tangents(mass.masked_fill(kept, 0), q_means))

    def _geometry(self, q: Tensor, layout: VideoLayout) -> BlockGeometry:
        like = Compensated(self.density, frames=self.frames, blocks=self.blocks)
        return like.geometry(layout, q.device, q.shape[3])


def block_errors(
    q: Tensor, k: Tensor, v: Tensor, means: KeyValueMeans, geometry: BlockGeometry
) -> Tensor:
    """Return how far the output moves when one block is skipped and compensated.

    Args:
        q: (B, H, S, D) queries in the geometry's order.
        k: (B, H, S, D) keys.
        v: (B, H, S, D) values.
        means: what stands for each key block.
        geometry: equal blocks.

    Returns:
        (B, H, Nq, Nkv) float32, the root of the mean squared error over the queries of a block, to
        first order in the block's own error.
    """
    block_q, block_kv = geometry.q.block, geometry.kv.block
    if block_q is None or block_kv is None:
        raise ValueError("blocks differ in size; give a geometry of equal blocks")
    lead, S, D = q.shape[:2], q.shape[2], q.shape[3]
    q, k, v, k_mean, v_mean = (x.flatten(0, 1).float() for x in (q, k, v, *means[:2]))
    bias = means.log_size.expand(*lead, -1).flatten(0, 1)
    k, v = (_in_blocks(x, block_kv) for x in (k, v))
    inside = _in_blocks(torch.ones(1, S, 1, device=q.device), block_kv)[..., 0] > 0
    Nkv = k.shape[1]
    room = _BYTES.get(q.device.type, 1 << 26) // (4 * Nkv * block_q * (2 * D + block_kv))
    heads = max(1, min(len(q), room))
    parts = []
    for start in range(0, len(q), heads):
        part = slice(start, start + heads)
        rows = [
            _row_errors(x, k[part], v[part], inside, k_mean[part], v_mean[part], bias[part])
            for x in (q[part] * D**-0.5).split(block_q, 1)
        ]
        parts.append(torch.stack(rows, 1))
    return torch.cat(parts).view(*lead, -1, Nkv)


def _row_errors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inside: Tensor,
    k_mean: Tensor,
    v_mean: Tensor,
    bias: Tensor,
) -> Tensor:
    """Return (G, Nkv) errors of one query block: q (G, R, D), k and v (G, Nkv, n, D)."""
    logits = torch.einsum("grd,gjnd->gjrn", q, k).masked_fill(~inside[:, :, None], -torch.inf)
    most = logits.amax((1, 3), keepdim=True)
    weights = (logits - most).exp()
    numerators, masses = weights @ v, weights.sum(-1, keepdim=True)  # (G, Nkv, R, D), (..., 1)
    total = masses.sum(1, keepdim=True)
    out = numerators.sum(1, keepdim=True) / total
    mean_logits = (q @ k_mean.mT + bias[:, None]).mT[..., None]
    mean_weights = (mean_logits - most).exp()
    numerators -= mean_weights * v_mean[:, :, None]
    numerators -= out * (masses - mean_weights)
    return (numerators / total).square_().sum(-1).mean(-1).sqrt()


def _in_blocks(x: Tensor, block: int) -> Tensor:
    """Cut (G, S, D) into (G, N, block, D), the last block filled up with zeros."""
    blocks = -(-x.shape[1] // block)
    x = torch.nn.functional.pad(x, (0, 0, 0, blocks * block - x.shape[1]))
    return x.view(x.shape[0], blocks, block, x.shape[2])


def _query_means(q: Tensor, geometry: BlockGeometry) -> Tensor:
    cut = geometry.q
    return pooled_means(q, cut.offsets, order=cut.order, block=cut.block)[0]
