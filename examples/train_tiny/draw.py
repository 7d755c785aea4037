"""The figures of the model card."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 110
SHOWN_DENSITY = "0.25"


def draw_training(record: dict[str, Any], path: Path) -> None:
    """Draw the VAE's PSNR and the transformer's loss on each grid against steps."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    vae = record["vae"]
    columns = vae["columns"]
    steps, psnr = (
        [row[columns.index(name)] for row in vae["curve"]] for name in ("step", "psnr_db")
    )
    left.plot(steps, psnr)
    left.set(title="VAE", xlabel="step", ylabel="PSNR of training clips, dB")
    for name, curve in record["transformer"]["curves"].items():
        right.plot(*zip(*curve, strict=True), label=name, linewidth=1)
    right.set(title="transformer", xlabel="step", ylabel="flow-matching loss", yscale="log")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)


def draw_attention(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw for each grid, by layer and head: oracle recall, and the share of temporal decisions."""
    figure = Figure(figsize=(7.5, 3.1 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False)
    for (left, right), row in zip(panels, rows, strict=True):
        where = f"{row['grid']}, {row['tokens']} tokens"
        recall = np.asarray(row["oracle_recall"][SHOWN_DENSITY])
        heat(left, recall, f"{where}: oracle recall at {SHOWN_DENSITY}", "viridis")
        heat(
            right,
            np.asarray(row["temporal"]),
            "temporal by SVG's test (share of calls)",
            "coolwarm",
        )
    figure.savefig(path, dpi=DPI)


def heat(axes: Axes, values: np.ndarray[Any, Any], title: str, colours: str) -> None:
    """Draw (layers, heads) in [0, 1], each cell with its number."""
    picture = axes.imshow(
        values, vmin=0, vmax=1, cmap=colours, aspect="auto", interpolation="nearest"
    )
    axes.set_title(title, fontsize=9)
    axes.set(xlabel="head", ylabel="layer")
    axes.set_yticks(range(values.shape[0]))
    axes.set_xticks(range(values.shape[1]))
    for (y, x), value in np.ndenumerate(values):
        light = float(np.dot(picture.to_rgba(value)[:3], (0.3, 0.6, 0.1))) > 0.55
        ink = "black" if light else "white"
        axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=ink)
