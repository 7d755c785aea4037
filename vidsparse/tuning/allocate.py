"""Share a budget among layers and noise levels where it removes most error."""

import heapq
from collections.abc import Mapping, Sequence

from vidsparse.preset_parts import Band
from vidsparse.tuning.errors import OutputError

# Errors by density of one cell, that is of one layer in one band.
CellErrors = Mapping[float, float]


def allocate(cells: Sequence[CellErrors], weights: Sequence[float], mean: float) -> list[float]:
    """Choose a density per cell so that the summed error is least at a mean density.

    Greedy by removed error per added work on the lower convex hull of each cell's curve, which is
    optimal but for the last step. Work is proportional to density, saved milliseconds to what is
    left of it.

    Args:
        cells: error by density for each cell; all have the least density in common.
        weights: calls per cell.
        mean: mean density over all calls that may not be exceeded.

    Returns:
        One density per cell.

    Raises:
        ValueError: the budget is below the least densities.
    """
    hulls = [_hull(cell) for cell in cells]
    level = [0] * len(cells)
    left = mean * sum(weights)
    left -= sum(w * hull[0][0] for w, hull in zip(weights, hulls, strict=True))
    if left < -1e-9:
        raise ValueError(f"mean density {mean} is below the least densities of the cells")
    heap = [entry for i, hull in enumerate(hulls) if (entry := _upgrade(hull, 0, i))]
    heapq.heapify(heap)
    while heap:
        _, i, step = heapq.heappop(heap)
        cost = weights[i] * step
        if cost > left + 1e-9:
            continue
        left -= cost
        level[i] += 1
        if entry := _upgrade(hulls[i], level[i], i):
            heapq.heappush(heap, entry)
    return [hull[at][0] for hull, at in zip(hulls, level, strict=True)]


def _upgrade(
    hull: Sequence[tuple[float, float]], level: int, index: int
) -> tuple[float, int, float] | None:
    """Return (minus removed error per density, cell, density added) of a cell's next step."""
    if level + 1 == len(hull):
        return None
    (d0, e0), (d1, e1) = hull[level], hull[level + 1]
    return (e1 - e0) / (d1 - d0), index, d1 - d0


def _hull(cell: CellErrors) -> list[tuple[float, float]]:
    """Return the lower convex hull of (density, error), from the least density on."""
    points: list[tuple[float, float]] = []
    for point in sorted(cell.items()):
        while len(points) > 1 and _slope(points[-2], points[-1]) >= _slope(points[-1], point):
            points.pop()
        points.append(point)
    # Where the error no longer falls more work is for nothing.
    while len(points) > 1 and points[-1][1] >= points[-2][1]:
        points.pop()
    return points


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def layer_bands(
    found: Sequence[OutputError], sigmas: Sequence[float], mean: float, *, by_noise: bool
) -> list[Band]:
    """Allocate a mean density over layers, and over noise levels too if asked.

    Args:
        found: errors of one variant, of all layers at some steps and several densities.
        sigmas: noise levels of the sparse steps.
        mean: mean density over all sparse calls.
        by_noise: also let noise levels differ; else each layer has one density.

    Returns:
        Bands from high to low noise, the last one down to 0.
    """
    looked = sorted({e.sigma for e in found if e.sigma <= max(sigmas) + 1e-9}, reverse=True)
    groups = [[sigma] for sigma in looked] if by_noise else [looked]
    layers = sorted({e.layer for e in found})
    keys = [(group, layer) for group in range(len(groups)) for layer in layers]
    edges = _edges([min(group) for group in groups], [max(group) for group in groups])
    counts = [_steps_between(sigmas, edges, group) for group in range(len(groups))]
    cells = [_cell(found, groups[group], layer) for group, layer in keys]
    chosen = dict(zip(keys, allocate(cells, [counts[g] for g, _ in keys], mean), strict=True))
    return [
        Band(above_sigma=edges[group], layers=[chosen[group, layer] for layer in layers])
        for group in range(len(groups))
    ]


def _cell(found: Sequence[OutputError], sigmas: Sequence[float], layer: int) -> dict[float, float]:
    sums: dict[float, list[float]] = {}
    for each in found:
        if each.layer == layer and each.sigma in sigmas:
            sums.setdefault(each.density, []).append(each.error)
    return {density: sum(values) / len(values) for density, values in sums.items()}


def _edges(lows: Sequence[float], highs: Sequence[float]) -> list[float]:
    """Return the lower edge of each band: halfway to the next one, and 0."""
    between = [round((low + high) / 2, 4) for low, high in zip(lows, highs[1:], strict=False)]
    return [*between, 0.0]


def _steps_between(sigmas: Sequence[float], edges: Sequence[float], group: int) -> int:
    above = edges[group - 1] if group else 2.0
    return max(1, sum(edges[group] < sigma <= above for sigma in sigmas))
