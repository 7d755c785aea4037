"""The best blocks by the true error of compensating for them: the control of error ranking."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from vidsparse.kernels.block_errors import block_errors
from vidsparse.kernels.block_means import key_value_means
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


@register
@dataclass(frozen=True)
class OracleError(SparseMethod):
    """Compute what skipping and compensating each block does to the output, then keep the worst.

    Slower than dense attention: on a GPU the blocks' errors cost about two of it, their mass one
    more. It says how well any ranking of these blocks can do, to first order: errors of blocks are
    taken as independent.

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
        block_q, block_kv = _equal_blocks(geometry)
        mass = exact_mass(q, k, geometry)
        q_means = _query_means(q, geometry)
        plan = geometry.plan(geometry.forced.expand(*q.shape[:2], -1, -1))
        q, k, v = permute_qkv(q, k, v, plan.q_order, plan.kv_order)
        around = tangents(mass, q_means) if self.tangents else None
        means = key_value_means(k, v, plan.mask, around)
        error = block_errors(q, k, v, means, block_q=block_q, block_kv=block_kv)
        sizes = geometry.q.sizes, geometry.kv.sizes
        kept = flat_top_k(error, self.density, *sizes, forced=geometry.forced)
        plan = geometry.plan(kept)
        if not (self.tangents and self.compensate):
            return plan
        return replace(plan, tangents=tangents(mass.masked_fill(kept, 0), q_means))

    def _geometry(self, q: Tensor, layout: VideoLayout) -> BlockGeometry:
        like = Compensated(self.density, frames=self.frames, blocks=self.blocks)
        return like.geometry(layout, q.device)


def _equal_blocks(geometry: BlockGeometry) -> tuple[int, int]:
    block_q, block_kv = geometry.q.block, geometry.kv.block
    if block_q is None or block_kv is None:
        raise ValueError("blocks differ in size; give a geometry of equal blocks")
    return block_q, block_kv


def _query_means(q: Tensor, geometry: BlockGeometry) -> Tensor:
    cut = geometry.q
    return pooled_means(q, cut.offsets, order=cut.order, block=cut.block)[0]
