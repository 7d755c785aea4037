"""Signed distances of the shapes that the bundled model draws, shared by generator and detector."""

import math

import torch
from torch import Tensor


def _polygon_wedge(x: Tensor, y: Tensor, corners: int, outer: float, inner: float) -> Tensor:
    """Distance to the edge from a tip (``outer``) to a notch (``inner``), folded by symmetry."""
    wedge = math.pi / corners
    # Tips point up, so the angle is measured from the upward axis.
    angle = torch.atan2(x, -y)
    folded = (torch.remainder(angle + wedge, 2 * wedge) - wedge).abs()
    radius = torch.sqrt(x * x + y * y)
    px, py = radius * folded.cos(), radius * folded.sin()
    notch_x, notch_y = inner * math.cos(wedge), inner * math.sin(wedge)
    # The edge runs from (outer, 0) to the notch; its outward normal:
    normal_x, normal_y = notch_y, outer - notch_x
    length = math.hypot(normal_x, normal_y)
    return ((px - outer) * normal_x + py * normal_y) / length


def shape_distance(x: Tensor, y: Tensor, name: str) -> Tensor:
    """Measure the signed distance to a shape of radius about 1 at the origin.

    Args:
        x: any shape, in radii, to the right.
        y: like ``x``, downwards.
        name: one of `vidsparse.models.grammar.SHAPES`.

    Returns:
        Distances in radii, negative inside; exact near the edge, where it matters.

    Raises:
        ValueError: ``name`` is unknown.
    """
    if name == "circle":
        return torch.sqrt(x * x + y * y) - 1.0
    if name == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.9
    if name == "triangle":
        return _polygon_wedge(x, y, 3, 1.3, 0.65)
    if name == "star":
        return _polygon_wedge(x, y, 5, 1.35, 0.56)
    if name == "ring":
        return (torch.sqrt(x * x + y * y) - 0.85).abs() - 0.27
    raise ValueError(f"shape {name!r} is not known; use circle, square, triangle, star or ring")
