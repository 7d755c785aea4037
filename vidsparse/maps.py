"""What a method sees of an attention map, what it keeps, and the map itself: data and picture."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_statistics import block_means
from vidsparse.kernels.launch import preferred_blocks
from vidsparse.kernels.permute import permute_tokens
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod
from vidsparse.methods.budget import flat_top_k
from vidsparse.methods.clusters import log_cluster_mass
from vidsparse.methods.draft import Draft, draft_map
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.profiling.recall import oracle_recall, plan_mass

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Shares of attention are coloured from a twentieth of an even spread upwards.
_FAINTEST = 0.05
# Light grey, of neither map's colours: blocks without a token.
_MISSING = "#d4d7dc"


@dataclass(frozen=True, eq=False)
class HeadMap:
    """The maps of one head, block by block of a plan.

    Attributes:
        head: its index.
        estimate: (Nq, Nkv) float32, share of each row that the blocks' means promise; for
            DraftAttention the draft map that it ranks.
        truth: (Nq, Nkv) float32, true share of attention of each key block; rows sum to 1.
        kept: (Nq, Nkv) bool, chosen blocks.
        q_sizes: (Nq,) int64 tokens per query block.
        kv_sizes: (Nkv,) int64 tokens per key block.
        oracle_recall: the most that as many pairs of these blocks can hold, in [0, 1].
        raster_oracle_recall: the same for the kernels' blocks in natural order.
    """

    head: int
    estimate: np.ndarray
    truth: np.ndarray
    kept: np.ndarray
    q_sizes: np.ndarray
    kv_sizes: np.ndarray
    oracle_recall: float
    raster_oracle_recall: float

    @property
    def density(self) -> float:
        """Kept share of query-key pairs, in (0, 1]."""
        pairs = self.q_sizes[:, None] * self.kv_sizes
        return float((pairs * self.kept).sum() / pairs.sum())

    @property
    def recall(self) -> float:
        """Kept share of attention, the mean over the queries, in [0, 1]."""
        share = (self.truth * self.kept).sum(1) * self.q_sizes
        return float(share.sum() / self.q_sizes.sum())

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, without the maps."""
        return {
            "head": self.head,
            "density": round(self.density, 5),
            "recall": round(self.recall, 5),
            "oracle_recall": round(self.oracle_recall, 5),
            "raster_oracle_recall": round(self.raster_oracle_recall, 5),
            "query_blocks": len(self.q_sizes),
            "key_blocks": len(self.kv_sizes),
        }


@dataclass(frozen=True, eq=False)
class SiteMaps:
    """The maps of a few heads of one attention call.

    Attributes:
        method: name of the method.
        site: the call.
        heads: one entry per head.
    """

    method: str
    site: CallSite
    heads: tuple[HeadMap, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, without the maps."""
        return {
            "method": self.method,
            "transformer": self.site.transformer,
            "layer": self.site.layer,
            "step": self.site.step,
            "heads": [head.as_dict() for head in self.heads],
        }


def attention_maps(
    method: SparseMethod,
    q: Tensor,
    k: Tensor,
    layout: VideoLayout,
    plan: AttentionPlan,
    site: CallSite,
    heads: tuple[int, ...],
) -> SiteMaps:
    """Compare a plan with the true attention map of the first batch row; waits for the device.

    Args:
        method: what planned.
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        layout: the sequence.
        plan: the method's decision.
        site: the call.
        heads: indices of the heads to look at.
    """
    chosen = torch.tensor(heads, device=q.device)
    q, k = (x[:1].index_select(1, chosen) for x in (q, k))
    plan = _of_heads(plan, chosen)
    estimates = _estimate(method, q, k, layout, plan)
    mass = plan_mass(q, k, plan)
    maps = []
    for i, head in enumerate(heads):
        one = slice(i, i + 1)
        own = _of_heads(plan, torch.tensor([i], device=q.device))
        maps.append(_head_map(head, q[:, one], k[:, one], own, estimates[:, one], mass[:, one]))
    return SiteMaps(method.name, site, tuple(maps))


def block_map(q: Tensor, k: Tensor, plan: AttentionPlan) -> Tensor:
    """Estimate the map of a plan's blocks from their mean query and key.

    Returns:
        (B, H, Nq, Nkv) float32 share of each key block; rows sum to 1, empty blocks have 0.
    """
    q_offsets, kv_offsets = _offsets(plan.mask)
    q_means = block_means(permute_tokens(q, plan.q_order), offsets=q_offsets)
    k_means = block_means(permute_tokens(k, plan.kv_order), offsets=kv_offsets)
    return log_cluster_mass(q_means, k_means, kv_offsets.diff()).exp()


def draw_maps(maps: SiteMaps) -> "Figure":
    """Draw one row per head: estimated map, chosen blocks, true map.

    Colours of both maps say how many times the even share of attention a block gets; rows and
    columns of blocks without a token, as clusters may be, are grey.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.1 + 3.3 * len(maps.heads)), layout="constrained")
    figure.suptitle(f"{maps.method}, {maps.site}\n{_caption(maps)}", fontsize=11)
    panels = figure.subplots(len(maps.heads), 3, squeeze=False)
    brightest = max(10.0, *(float(np.quantile(_contrast(h.truth, h), 0.999)) for h in maps.heads))
    colours = LogNorm(_FAINTEST, brightest, clip=True)
    estimate = "draft map" if maps.method == "draft" else "map of block means"
    for row, head in zip(panels, maps.heads, strict=True):
        share, best = f"density {head.density:.2f}", f"oracle {head.oracle_recall:.3f}"
        titles = (
            f"head {head.head}: {estimate}",
            f"{share}: recall {head.recall:.3f}, {best}",
            f"head {head.head}: true map",
        )
        shown = {"cmap": "magma", "norm": colours}
        _draw(row[0], _contrast(head.estimate, head), head, titles[0], **shown)
        kept = head.kept.astype(np.float32)
        _draw(row[1], kept, head, titles[1], cmap="gray", vmin=0, vmax=1)
        picture = _draw(row[2], _contrast(head.truth, head), head, titles[2], **shown)
        row[0].set_ylabel("query block")
        figure.colorbar(picture, ax=row[2], label="times the even share")
    for axes in panels[-1]:
        axes.set_xlabel("key block")
    return figure


def _caption(maps: SiteMaps) -> str:
    """Say what the colours of the blocks mean."""
    empty = any((h.q_sizes == 0).any() or (h.kv_sizes == 0).any() for h in maps.heads)
    return "middle: white = kept, black = skipped" + ("; grey = cluster without a token" * empty)


def _draw(axes: Any, values: np.ndarray, head: HeadMap, title: str, **colours: Any) -> Any:
    """Draw one panel; blocks without a token are missing, whole numbers count the others."""
    from matplotlib.ticker import MaxNLocator

    missing = (head.q_sizes == 0)[:, None] | (head.kv_sizes == 0)
    axes.set_facecolor(_MISSING)
    axes.set_title(title, fontsize=10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    shown = np.ma.masked_array(values, missing)
    return axes.imshow(shown, aspect="auto", interpolation="nearest", **colours)


def _head_map(
    head: int, q: Tensor, k: Tensor, plan: AttentionPlan, estimate: Tensor, mass: Tensor
) -> HeadMap:
    rows, columns = (offsets[0, 0].diff().long() for offsets in _offsets(plan.mask))
    kept = plan.mask.to_dense()[0, 0]
    pairs = rows[:, None] * columns
    density = float((kept * pairs).sum()) / q.shape[2] ** 2
    # Unequal blocks are best chosen by what a pair of tokens is worth.
    best = flat_top_k(mass / pairs.clamp(min=1), density, rows, columns)
    raster = oracle_recall(q, k, density, *preferred_blocks(q.device))
    return HeadMap(
        head=head,
        estimate=estimate[0, 0].cpu().numpy(),
        truth=(mass[0, 0] / rows.clamp(min=1)[:, None]).cpu().numpy(),
        kept=kept.cpu().numpy(),
        q_sizes=rows.cpu().numpy(),
        kv_sizes=columns.cpu().numpy(),
        oracle_recall=float((mass * best).sum() / q.shape[2]),
        raster_oracle_recall=float(raster),
    )


def _estimate(
    method: SparseMethod, q: Tensor, k: Tensor, layout: VideoLayout, plan: AttentionPlan
) -> Tensor:
    if not isinstance(method, Draft):
        return block_map(q, k, plan)
    geometry = method.geometry(layout, q.device)
    return draft_map(q, k, geometry, second_moment=method.second_moment)


def _of_heads(plan: AttentionPlan, heads: Tensor) -> AttentionPlan:
    """Cut a plan down to its first batch row and some heads."""

    def cut(x: Tensor) -> Tensor:
        return x[:1] if x.shape[1] == 1 else x[:1].index_select(1, heads)

    mask = plan.mask
    if isinstance(mask, BlockMask):
        lists = cut(mask.kv_num_blocks), cut(mask.kv_indices)
        mask = replace(mask, kv_num_blocks=lists[0], kv_indices=lists[1])
    else:
        offsets = cut(mask.q_offsets), cut(mask.kv_offsets)
        mask = replace(mask, q_offsets=offsets[0], kv_offsets=offsets[1], mask=cut(mask.mask))
    q_order, kv_order = (x if x is None else cut(x) for x in (plan.q_order, plan.kv_order))
    return AttentionPlan(mask, q_order, kv_order)


def _offsets(mask: BlockMask | RaggedBlockMask) -> tuple[Tensor, Tensor]:
    """Return (1, H | 1, N + 1) int32 block boundaries of queries and keys."""
    if isinstance(mask, RaggedBlockMask):
        return mask.q_offsets, mask.kv_offsets
    device = mask.kv_indices.device
    sides = (mask.seq_q, mask.block_q), (mask.seq_kv, mask.block_kv)
    q, kv = (torch.arange(0, S + block, block, device=device).clamp(max=S) for S, block in sides)
    return q.int().view(1, 1, -1), kv.int().view(1, 1, -1)


def _contrast(shares: np.ndarray, head: HeadMap) -> np.ndarray:
    """Divide each block's share by that of an even spread; empty blocks are 0."""
    even = head.kv_sizes / head.kv_sizes.sum()
    return np.asarray(np.divide(shares, even, out=np.zeros_like(shares), where=even > 0))
