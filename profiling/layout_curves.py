"""How much attention mass the best blocks hold at each density, for several token orders."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask, block_sizes
from vidsparse.kernels.launch import preferred_blocks
from vidsparse.layout import VideoLayout, pixel_major_order
from vidsparse.methods.blocks import tile_geometry
from vidsparse.methods.head_rates import text_share
from vidsparse.methods.svg import SVG
from vidsparse.methods.svg2 import Svg2
from vidsparse.methods.windows import choose_tile
from vidsparse.plan import AttentionPlan
from vidsparse.profiling.dense_run import Look
from vidsparse.profiling.recall import plan_mass

DENSITIES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
# Heads and layers looked at; more change the means little and cost as much as attention does.
MAX_HEADS, MAX_LAYERS = 8, 12
# The usual setting of SVG's test of head types.
_HEAD_TYPE_DENSITY = 0.25


@dataclass(frozen=True)
class Curve:
    """Recall of the best blocks of one order in one call.

    Attributes:
        order: one of ``ORDERS``.
        layer: of the call.
        step: of the call.
        sigma: noise level of the call.
        recall: (heads, densities) share of attention mass in [0, 1], at ``DENSITIES``.
    """

    order: str
    layer: int
    step: int
    sigma: float | None
    recall: Tensor


@dataclass
class LayoutCurves:
    """Take recall-density curves of the calls shown; keeps the curves, never a map.

    Attributes:
        curves: what was found.
        skipped: orders that do not work on this model, and why.
    """

    curves: list[Curve] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def look(self, call: Look) -> None:
        """Take the curves of one call, of some heads and layers."""
        if call.site.layer not in spread(call.site.num_layers, MAX_LAYERS):
            return
        heads = spread(call.q.shape[1], MAX_HEADS)
        q, k, v, out = (x[:, heads] for x in (call.q, call.k, call.v, call.out))
        some = Look(q, k, v, out, call.layout, call.site)
        for name, order in ORDERS.items():
            try:
                plan = order(some)
            except UsageError as error:
                self.skipped[name] = str(error)
                continue
            recall = best_recall(plan_mass(some.q, some.k, plan)[0], plan, DENSITIES)
            site = call.site
            self.curves.append(Curve(name, site.layer, site.step, site.sigma, recall.cpu()))


@dataclass
class HeadKinds:
    """Ask SVG's test which heads are spatial and which temporal.

    Attributes:
        temporal: (layer, step, (H,) bool) per call.
        skipped: why the test does not work on this model.
    """

    temporal: list[tuple[int, int, Tensor]] = field(default_factory=list)
    skipped: str | None = None

    def look(self, call: Look) -> None:
        """Test the heads of one call."""
        method = SVG(_HEAD_TYPE_DENSITY)
        try:
            plan = method.plan(call.q, call.k, call.v, call.layout, call.site, method.init_state())
        except UsageError as error:
            self.skipped = str(error)
            return
        if plan is not None and plan.moved_heads is not None:
            site = call.site
            self.temporal.append((site.layer, site.step, plan.moved_heads[0].cpu()))


def spread(count: int, at_most: int) -> list[int]:
    """Return up to ``at_most`` indices below ``count``, evenly spread."""
    if count <= at_most:
        return list(range(count))
    return [round(i * (count - 1) / (at_most - 1)) for i in range(at_most)]


def best_recall(mass: Tensor, plan: AttentionPlan, densities: tuple[float, ...]) -> Tensor:
    """Return the most mass that blocks can hold at each density.

    Args:
        mass: (H, Nq, Nkv) float32 attention mass of every block.
        plan: whose blocks they are.
        densities: shares of query-key pairs, in (0, 1].

    Returns:
        (H, densities) in [0, 1]; a block that only fits in part counts in part.
    """
    pairs = _pairs(plan, mass)
    weight = (mass / pairs.clamp(min=1)).flatten(1)
    order = weight.argsort(dim=1, descending=True)
    spent = pairs.expand_as(mass).flatten(1).gather(1, order).double().cumsum(1)
    held = mass.flatten(1).gather(1, order).double().cumsum(1)
    budgets = torch.tensor(densities, dtype=torch.float64, device=mass.device) * spent[:, -1:]
    return (_interpolated(spent, held, budgets) / held[:, -1:]).float()


def _interpolated(spent: Tensor, held: Tensor, budgets: Tensor) -> Tensor:
    spent, held = (torch.nn.functional.pad(x, (1, 0)) for x in (spent, held))
    right = torch.searchsorted(spent, budgets.contiguous()).clamp(1, spent.shape[1] - 1)
    low, high = spent.gather(1, right - 1), spent.gather(1, right)
    part = ((budgets - low) / (high - low).clamp(min=1)).clamp(0, 1)
    return torch.lerp(held.gather(1, right - 1), held.gather(1, right), part)


def _pairs(plan: AttentionPlan, mass: Tensor) -> Tensor:
    """Return (H | 1, Nq, Nkv) float32 query-key pairs of each block."""
    mask = plan.mask
    if isinstance(mask, RaggedBlockMask):
        q, kv = (offsets[0].diff(dim=-1).float() for offsets in (mask.q_offsets, mask.kv_offsets))
    else:
        q = block_sizes(mask.seq_q, mask.block_q, device=mass.device).float()[None]
        kv = block_sizes(mask.seq_kv, mask.block_kv, device=mass.device).float()[None]
    return q[:, :, None] * kv[:, None]


def _raster(call: Look) -> AttentionPlan:
    return AttentionPlan(_all_blocks(call))


def _pixel_major(call: Look) -> AttentionPlan:
    order = pixel_major_order(call.layout, call.q.device).view(1, 1, -1)
    return AttentionPlan(_all_blocks(call), order, order)


def _tiled(call: Look) -> AttentionPlan:
    tile = choose_tile(call.layout.grid, min(preferred_blocks(call.q.device)))
    geometry = tile_geometry(call.layout, tile, call.q.device, own=False)
    return geometry.plan(torch.ones_like(geometry.forced)[None, None])


def _clustered(call: Look) -> AttentionPlan:
    method = Svg2(_least_density(call.layout))
    return method.plan(call.q, call.k, call.v, call.layout, call.site, method.init_state())


def _least_density(layout: VideoLayout) -> float:
    """Return a density that text leaves room for; all clusters are looked at anyway."""
    return min(1.0, text_share(layout) + 0.1)


def _all_blocks(call: Look) -> BlockMask:
    S = call.layout.num_tokens
    block_q, block_kv = preferred_blocks(call.q.device)
    every = torch.ones(1, 1, -(-S // block_q), -(-S // block_kv), dtype=torch.bool)
    return BlockMask.from_dense(
        every.to(call.q.device), block_q=block_q, block_kv=block_kv, seq_q=S, seq_kv=S
    )


ORDERS: dict[str, Callable[[Look], AttentionPlan]] = {
    "raster": _raster,
    "tiled": _tiled,
    "pixel-major": _pixel_major,
    "k-means": _clustered,
}


def mean_curves(curves: list[Curve], **of: Any) -> dict[str, list[float]]:
    """Return the mean recall by order at ``DENSITIES``, over the curves with these fields."""
    found: dict[str, list[Tensor]] = {}
    for curve in curves:
        if all(getattr(curve, name) == value for name, value in of.items()):
            found.setdefault(curve.order, []).append(curve.recall.mean(0))
    return {name: torch.stack(rows).mean(0).tolist() for name, rows in found.items()}
