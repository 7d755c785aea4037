"""The page's tables: one row per method, one row per clip."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vidsparse.report.results import Results

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the page's main table.

    Attributes:
        title: heading.
        value: a row's text.
        metric: name of its interval; None without one.
        digits: of the interval.
        scale: of the interval.
        text: whether it is words rather than numbers.
        needs: key that must hold a number in some row for the column to be shown.
        under: what stands below the value instead of half of the interval.
    """

    title: str
    value: Callable[[Row], str]
    metric: str | None = None
    digits: int = 2
    scale: float = 1.0
    text: bool = False
    needs: str | None = None
    under: Callable[[Row], str] | None = None

    def used(self, rows: list[Row]) -> bool:
        """Whether any row has a value."""
        if self.needs == "content":
            return any(row["content"] for row in rows)
        return self.needs is None or any(isinstance(row.get(self.needs), float) for row in rows)

    def extra(self, row: Row) -> str:
        """Return what stands below the value: half of the interval; nothing for one clip."""
        if self.under is not None:
            return self.under(row)
        interval = row["intervals"].get(self.metric)
        if interval is None or interval["low"] is None:
            return ""
        half = (interval["high"] - interval["low"]) / 2 * self.scale
        return f"±{half:.{self.digits}f}"


def _number(key: str, digits: int, scale: float = 1.0) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = row.get(key)
        return f"{value * scale:.{digits}f}" if isinstance(value, float) else "n/a"

    return show


def _overall(row: Row) -> str:
    return f"{row['overall_density']:.3f} in all"


def _psnr(key: str) -> Callable[[Row], str]:
    return lambda row: "∞" if row["identical"] else f"{row[key]:.2f}"


def _content(row: Row) -> str:
    shares = (row["content"] or {}).values()
    return " / ".join(f"{share:.0%}" for share in shares) or "n/a"


COLUMNS = (
    Column("method", lambda row: row["method"]),
    Column("verdict", lambda row: row["verdict"], text=True),
    Column("speed-up", lambda row: f"{row['speedup']:.2f}x", metric="speedup"),
    Column("density", _number("density", 3), under=_overall),
    Column("PSNR dB", _psnr("psnr"), metric="psnr"),
    Column("pooled dB", _psnr("psnr_pooled")),
    Column("SSIM", _number("ssim", 4), metric="ssim", digits=4),
    Column("MS-SSIM", _number("ms_ssim", 4), metric="ms_ssim", digits=4, needs="ms_ssim"),
    Column("LPIPS alex", _number("lpips", 4), metric="lpips", digits=4, needs="lpips"),
    Column("LPIPS vgg", _number("lpips_vgg", 4), metric="lpips_vgg", digits=4, needs="lpips_vgg"),
    Column("flicker", _number("flicker", 2, 1e3), "flicker", 2, 1e3, needs="flicker"),
    Column("warped", _number("warped_error", 2, 1e4), "warped_error", 2, 1e4, needs="warped_error"),
    Column("shape / colour / direction right", _content, needs="content"),
)
_BADGES = {"indistinguishable": "indistinguishable", "same content": "same-content"}


def page_row(row: Row, rows: list[Row]) -> dict[str, Any]:
    """Return one row for the template: cells of the columns in use, and why its verdict."""
    cells = [
        {
            "value": column.value(row),
            "extra": column.extra(row),
            "text": column.text,
            "badge": _badge(row["verdict"]) if column.title == "verdict" else "",
        }
        for column in COLUMNS
        if column.used(rows)
    ]
    floor = row["role"] == "floor"
    reason = "what two dense runs differ by" if floor else row["reason"]
    return {"floor": floor, "reason": reason, "cells": cells}


def _badge(verdict: str) -> str:
    return _BADGES.get(verdict, verdict.replace(" ", "-"))


def per_clip_rows(results: Results) -> list[tuple[str, ...]]:
    """Return one row per method and clip: what the intervals are made of."""
    dense = [results.facts(results.keys[0], scene) for scene in results.scenes]
    rows: list[tuple[str, ...]] = []
    for row in results.document["rows"]:
        for scene, truth in zip(results.scenes, dense, strict=True):
            clip = results.facts(row["key"], scene)
            assert clip.quality is not None, "only the dense clip has no quality"
            means = clip.quality.means()
            rows.append(
                (
                    row["method"],
                    scene.prompt,
                    str(scene.seed),
                    f"{truth.denoise_seconds / clip.denoise_seconds:.2f}x",
                    f"{means['psnr']:.2f}",
                    f"{means['ssim']:.4f}",
                    "n/a" if means["flicker"] is None else f"{means['flicker'] * 1000:.2f}",
                )
            )
    return rows
