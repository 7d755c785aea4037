"""Which heads SVG finds spatial and which temporal, by layer and step: data and picture."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vidsparse.methods.svg import WatchedSVG
from vidsparse.plan import CallSite

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class HeadTypes:
    """Decisions of one generation.

    Attributes:
        transformer: attribute name in the pipeline.
        steps: denoising steps that were sparse, ascending.
        temporal: (steps, layers, heads) share of calls (branches, batch rows) in which the head
            was temporal, in [0, 1]; NaN where a layer was dense.
    """

    transformer: str
    steps: tuple[int, ...]
    temporal: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values; null where a layer was dense."""
        values = self.temporal.astype(object)
        values[np.isnan(self.temporal)] = None
        return {
            "transformer": self.transformer,
            "steps": list(self.steps),
            "temporal_share": None if self._empty() else float(np.nanmean(self.temporal)),
            "temporal": values.tolist(),
        }

    def by_layer(self) -> np.ndarray:
        """Return the (layers, steps) share of temporal heads in [0, 1]."""
        return np.asarray(self.temporal.mean(axis=2).T)

    def _empty(self) -> bool:
        return bool(np.isnan(self.temporal).all())


def head_types(watched: WatchedSVG) -> list[HeadTypes]:
    """Collect what a watched SVG decided, one entry per transformer; waits for the device."""
    seen: dict[str, list[tuple[CallSite, np.ndarray]]] = {}
    for site, temporal in watched.decisions:
        row = temporal.float().mean(0).cpu().numpy()
        seen.setdefault(site.transformer, []).append((site, row))
    return [_collect(name, rows) for name, rows in sorted(seen.items())]


def _collect(name: str, rows: list[tuple[CallSite, np.ndarray]]) -> HeadTypes:
    steps = tuple(sorted({site.step for site, _ in rows}))
    shape = (len(steps), rows[0][0].num_layers, len(rows[0][1]))
    total, count = np.zeros(shape), np.zeros(shape)
    for site, row in rows:
        where = steps.index(site.step), site.layer
        total[where] += row
        count[where] += 1
    share = np.full(shape, np.nan)
    np.divide(total, count, out=share, where=count > 0)
    return HeadTypes(name, steps, share)


def draw_head_types(found: list[HeadTypes]) -> "Figure":
    """Draw one heat map per transformer: layers down, steps across, colour is the share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, types in zip(panels, found, strict=True):
        picture = axes.imshow(
            types.by_layer(),
            vmin=0,
            vmax=1,
            cmap="coolwarm",
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(f"{types.transformer}: share of heads that are temporal", fontsize=11)
        axes.set_xticks(range(len(types.steps)), [str(step) for step in types.steps])
        axes.set_yticks(range(types.temporal.shape[1]))
        axes.set_xlabel("denoising step")
        axes.set_ylabel("layer")
        figure.colorbar(picture, ax=axes, label="0 all spatial, 1 all temporal")
    return figure
