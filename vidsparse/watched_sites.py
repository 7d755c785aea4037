"""Record what another method keeps at every layer, head and step while it generates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from vidsparse.generate import Sampling, sample
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask, block_sizes
from vidsparse.layout import VideoLayout
from vidsparse.methods.wrapped import WrappedMethod
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.profiling.recall import recall
from vidsparse.request import SparseRequest


@dataclass(frozen=True)
class SiteRow:
    """One attention call of the first branch.

    Attributes:
        site: the call.
        density: (H,) kept share of query-key pairs of each head.
        recall: (H,) kept share of the true attention mass of each head.
    """

    site: CallSite
    density: Tensor
    recall: Tensor


@dataclass(frozen=True)
class WatchedSites(WrappedMethod):
    """Another method, watched at every call of the first branch; exact recall costs time.

    Attributes:
        inner: what plans.
        rows: what was seen.
    """

    name: ClassVar[str] = "sites"
    summary: ClassVar[str] = "records density and recall of another method"
    source: ClassVar[str] = "control"

    rows: list[SiteRow] = field(default_factory=list, compare=False, repr=False)

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Plan as the other method does, and record the first batch row of the first branch."""
        plan = self.inner.decide(q, k, v, layout, site, state)
        if plan is not None and plan.dense_reason is None and site.branch == 0:
            kept = recall(q[:1], k[:1], plan)[0].cpu()
            density = head_density(plan.mask)[:1].expand(1, q.shape[1])[0].cpu()
            self.rows.append(SiteRow(site, density, kept))
        return plan


def head_density(mask: BlockMask | RaggedBlockMask) -> Tensor:
    """Return kept token pairs over all token pairs of each head: (B | 1, H | 1) in [0, 1]."""
    if isinstance(mask, BlockMask):
        rows = block_sizes(mask.seq_q, mask.block_q, device=mask.device)
        kept = (rows * mask.keys_per_row()).sum(-1)
        return (kept / (mask.seq_q * mask.seq_kv)).float()
    rows, columns = mask.q_offsets.diff().double(), mask.kv_offsets.diff().double()
    kept = (rows[..., :, None] * mask.mask * columns[..., None, :]).sum(dim=(-2, -1))
    return (kept / (mask.seq_q * mask.seq_kv)).float()


def watch_sites(
    pipe: Any, request: SparseRequest, prompt: str, sampling: Sampling, *, seed: int
) -> dict[str, Any]:
    """Generate one untimed clip and return density and recall by step, layer and head.

    Settings are those of timed clips, a preset's step cache included: calls it skips have no row.

    Returns:
        JSON values, see ``site_tables``.

    Raises:
        UsageError: the method cannot be attached.
    """
    with request.enable(pipe) as handle:
        inner = handle.method
    watched = WatchedSites(inner.density, inner=inner)
    with request.enable(pipe, instead=watched):
        sample(pipe, prompt, sampling, seed=seed)
    return {"transformers": site_tables(watched.rows)}


def site_tables(rows: Sequence[SiteRow]) -> list[dict[str, Any]]:
    """Sort rows into tables, one entry per transformer.

    Returns:
        Each with its name, the sparse ``steps``, and ``density`` and ``recall`` as nested lists
        [step][layer][head] in [0, 1]; null where a call was dense.
    """
    names = dict.fromkeys(row.site.transformer for row in rows)
    return [_table(name, [row for row in rows if row.site.transformer == name]) for name in names]


def _table(name: str, rows: Sequence[SiteRow]) -> dict[str, Any]:
    steps = sorted({row.site.step for row in rows})
    shape = (len(steps), rows[0].site.num_layers, len(rows[0].density))
    tables = {key: np.full(shape, np.nan) for key in ("density", "recall")}
    for row in rows:
        where = steps.index(row.site.step), row.site.layer
        tables["density"][where] = row.density.numpy()
        tables["recall"][where] = row.recall.numpy()
    return {
        "transformer": name,
        "steps": steps,
        **{key: _json(table) for key, table in tables.items()},
    }


def _json(table: np.ndarray) -> list[Any]:
    values = table.round(4).astype(object)
    values[np.isnan(table)] = None
    return list(values.tolist())
