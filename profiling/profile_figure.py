"""Draw a model profile: recall by density and order, by layer and noise, and the ceilings."""

from typing import TYPE_CHECKING

import numpy as np

from vidsparse.profiling.amdahl import WARM_UPS, ceiling
from vidsparse.profiling.layout_curves import DENSITIES, Curve, mean_curves
from vidsparse.profiling.model_profile import ModelProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The density at which layers and noise levels are compared.
_AT = DENSITIES.index(0.25)


def draw_profile(profile: ModelProfile) -> "Figure":
    """Return one figure of four panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    _draw_orders(axes[0, 0], profile)
    _draw_ceilings(axes[0, 1], profile)
    best = _best_order(profile)
    _draw_layers(axes[1, 0], profile, best)
    _draw_map(figure, axes[1, 1], profile, best)
    return figure


def _best_order(profile: ModelProfile) -> str:
    means = mean_curves(list(profile.curves))
    return max(means, key=lambda name: means[name][_AT])


def _draw_orders(axes: "Axes", profile: ModelProfile) -> None:
    for name, row in mean_curves(list(profile.curves)).items():
        axes.plot(DENSITIES, row, marker="o", markersize=3, label=name)
    axes.plot(DENSITIES, DENSITIES, color="grey", linestyle=":", label="random blocks")
    _finish(axes, "mass in the best blocks, by token order", "density", "share of attention mass")


def _draw_ceilings(axes: "Axes", profile: ModelProfile) -> None:
    densities = np.linspace(0.02, 1, 50)
    for warm_up in WARM_UPS:
        values = [ceiling(profile.attention_share, float(d), warm_up) for d in densities]
        axes.plot(densities, values, label=f"{warm_up:.0%} dense steps")
    title = f"speed-up at most (attention: {profile.attention_share:.0%} of the time)"
    _finish(axes, title, "density", "speed-up")


def _draw_layers(axes: "Axes", profile: ModelProfile, order: str) -> None:
    for layer in sorted({curve.layer for curve in profile.curves}):
        row = mean_curves(list(profile.curves), order=order, layer=layer)[order]
        axes.plot(DENSITIES, row, label=f"layer {layer}", linewidth=1)
    _finish(axes, f"by layer, order {order}", "density", "share of attention mass")


def _draw_map(figure: "Figure", axes: "Axes", profile: ModelProfile, order: str) -> None:
    curves = [curve for curve in profile.curves if curve.order == order]
    layers = sorted({curve.layer for curve in curves})
    steps = sorted({curve.step for curve in curves})
    values = np.full((len(layers), len(steps)), np.nan)
    for curve in curves:
        place = layers.index(curve.layer), steps.index(curve.step)
        values[place] = float(curve.recall[:, _AT].mean())
    picture = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(steps)), [_sigma_text(curves, step) for step in steps])
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_title(f"mass at density {DENSITIES[_AT]:g}, order {order}", fontsize=11)
    axes.set_xlabel("noise level")
    axes.set_ylabel("layer")
    figure.colorbar(picture, ax=axes)


def _sigma_text(curves: list[Curve], step: int) -> str:
    sigma = next(curve.sigma for curve in curves if curve.step == step)
    return f"step {step}" if sigma is None else f"{sigma:.2f}"


def _finish(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
