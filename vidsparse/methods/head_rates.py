"""Give the heads of a layer different shares of its budget."""

from typing import Literal

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.methods.blocks import BlockGeometry
from vidsparse.methods.budget import rank_rows, row_top_k, shared_top_k

Heads = Literal["adaptive", "equal", "shared"]
HEADS: tuple[Heads, ...] = ("adaptive", "equal", "shared")

# What the heads that recall most get of the common budget, and those that recall least.
FEWER, MORE = 0.5, 1.5


def head_densities(
    recall: Tensor, density: float, *, always: float = 0.0, target: float = 0.8
) -> Tensor:
    """Move budget from the heads that recall most to as many heads that recall least.

    With n heads above the target, at most half of all, the n best get half the budget and the n
    worst one and a half times it, so that the mean stays. In terms of sparsity s = 1 - density
    that is (1 + s) / 2 and (3 s - 1) / 2.

    Args:
        recall: (B, H) share of attention mass that each head keeps at ``density``.
        density: kept share of query-key pairs, in (0, 1].
        always: part of ``density`` that every head keeps in any case, such as text, in
            [0, ``density``]; only the rest is moved.
        target: recall that needs no more, in [0, 1].

    Returns:
        (B, H) float64 densities, made without waiting for the device. Of heads that recall alike
        the first counts as the better one.

    Source: AdaSpa, arXiv:2502.21079, section 4.2; it leaves open what happens when more than half
    of the heads recall enough.
    """
    H = recall.shape[-1]
    moved = (recall > target).sum(-1, keepdim=True).clamp(max=H // 2)
    order = torch.argsort(recall, dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(H, device=recall.device).expand_as(order)
    )
    factor = torch.ones(recall.shape, dtype=torch.float64, device=recall.device)
    factor = factor.masked_fill(rank < moved, FEWER).masked_fill(rank >= H - moved, MORE)
    return always + (density - always) * factor


def best_head_densities(share: Tensor, density: float, geometry: BlockGeometry) -> Tensor:
    """Return the head densities with which a layer keeps most attention mass in all.

    All blocks of all heads compete; what a head wins is its density.

    Args:
        share: (B, H, Nq, Nkv) share of each block in its row's mass.
        density: kept share of query-key pairs, the mean over the heads.
        geometry: blocks, and those that always stay.

    Returns:
        (B, H) float64, made without waiting for the device.
    """
    q_sizes, kv_sizes = geometry.q.sizes, geometry.kv.sizes
    pairs = (q_sizes[:, None] * kv_sizes).double()
    mass = share * q_sizes[:, None]
    kept = shared_top_k(mass, density, q_sizes, kv_sizes, forced=geometry.forced)
    return (kept * pairs).sum((-1, -2)) / pairs.sum()


def row_top_k_by_head(
    mass: Tensor,
    density: float,
    geometry: BlockGeometry,
    layout: VideoLayout,
    *,
    heads: Heads,
    target: float,
) -> Tensor:
    """Keep the best blocks of every row, the same share in each row of a head.

    Args:
        mass: (B, H, Nq, Nkv) float32, at least 0; rows may sum to anything above 0, as they do
            against an old log-sum-exp.
        density: kept share of query-key pairs, the mean over the heads.
        geometry: blocks, and those that always stay.
        layout: the sequence.
        heads: "equal" gives all heads this density, "adaptive" those of ``head_densities``,
            "shared" those of ``best_head_densities``.
        target: recall that needs no more for "adaptive", in [0, 1].

    Returns:
        (B, H, Nq, Nkv) bool.
    """
    sizes, forced = (geometry.q.sizes, geometry.kv.sizes), geometry.forced
    share = mass / mass.sum(-1, keepdim=True)
    if heads == "shared":
        densities = best_head_densities(share, density, geometry)
        return row_top_k(share, densities[..., None], *sizes, forced=forced)
    ranked = rank_rows(share, *sizes, forced=forced)
    kept = ranked.cut(density)
    if heads == "equal":
        return kept
    recall = ((share * kept).sum(-1) * geometry.q.sizes).sum(-1) / layout.num_tokens
    densities = head_densities(recall, density, always=text_share(layout), target=target)
    return ranked.cut(densities[..., None])


def check_adaptive_density(density: float, geometry: BlockGeometry, layout: VideoLayout) -> None:
    """Refuse a density that leaves the heads which get least not even the forced blocks.

    Raises:
        UsageError: it does; the message names the least density.
    """
    text = text_share(layout)
    least = text + (density - text) * FEWER
    if least < geometry.least_density - 1e-9:
        enough = text + (geometry.least_density - text) / FEWER
        raise UsageError(
            f"density={density} leaves the heads that recall most {least:.4f}, but "
            f"{geometry.always} always stay, {geometry.least_density:.4f} of all query-key pairs; "
            f"use a density of at least {enough + 5e-5:.4f}, or heads='equal'"
        )


def text_share(layout: VideoLayout) -> float:
    """Return the share of query-key pairs with text on either side, in [0, 1)."""
    return 1 - (layout.video_tokens / layout.num_tokens) ** 2
