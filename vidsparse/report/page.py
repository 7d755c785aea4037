"""One self-contained HTML page of a results folder: players, charts, maps, how it was made."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from vidsparse.clips import ClipFacts, Scene, SiteDensity
from vidsparse.files import write_text
from vidsparse.quality import Quality
from vidsparse.report.players import Tiles, make_tiles
from vidsparse.report.results import Results
from vidsparse.report.rows import COLUMNS, page_row, per_clip_rows
from vidsparse.report.tables import MEANINGS, findings, headline, reasons

MOST_SCENES = 6
_METRICS = (
    {"key": "psnr", "title": "PSNR", "unit": "dB", "digits": 2, "downwards": False},
    {"key": "ssim", "title": "SSIM", "unit": "", "digits": 4, "downwards": False},
    {"key": "ms_ssim", "title": "MS-SSIM", "unit": "", "digits": 4, "downwards": False},
    {"key": "lpips", "title": "LPIPS, AlexNet", "unit": "", "digits": 4, "downwards": True},
    {"key": "lpips_vgg", "title": "LPIPS, VGG16", "unit": "", "digits": 4, "downwards": True},
    {"key": "flicker", "title": "flicker", "unit": "", "digits": 5, "downwards": True},
)


def write_report(path: Path, results: Results, *, most_scenes: int = MOST_SCENES) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the page.
        results: what to show.
        most_scenes: clips whose videos are embedded; tables and charts hold all of them.

    Raises:
        UsageError: a clip is gone or damaged, or the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vidsparse"), autoescape=True, undefined=StrictUndefined
    )
    write_text(
        path, environment.get_template("report.html.j2").render(_context(results, most_scenes))
    )


def _context(results: Results, most_scenes: int) -> dict[str, Any]:
    document, scenes = results.document, results.scenes
    tiles = {scene: _tiles(results, scene) for scene in scenes[:most_scenes]}
    height, width, frames = _size(results)
    meta = document["meta"]
    return {
        "meta": meta,
        "scenes": document["scenes"],
        "size": f"{width} x {height} pixels, {frames} frames at {results.fps:g} a second",
        "columns": [column for column in COLUMNS if column.used(document["rows"])],
        "rows": [page_row(row, document["rows"]) for row in document["rows"]],
        "has_floor": any(row["role"] == "floor" for row in document["rows"]),
        "headline": headline(document),
        "notes": findings(document),
        "reasons": reasons(document),
        "meanings": MEANINGS,
        "folder": results.folder.name,
        "shown": [
            {"prompt": scene.prompt, "seed": scene.seed, "video": one.video}
            for scene, one in tiles.items()
        ],
        "per_clip_titles": ("method", "prompt", "seed", "speed-up", "PSNR dB", "SSIM", "flicker"),
        "per_clip": per_clip_rows(results),
        "sampling": ", ".join(f"{key} {value}" for key, value in meta["sampling"].items()),
        "versions": ", ".join(f"{name} {v}" for name, v in meta["versions"].items() if v),
        "data": _for_script(_data(results, tiles)),
    }


def _for_script(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _size(results: Results) -> tuple[int, int, int]:
    frames = results.frames(results.keys[0], results.scenes[0])
    return frames.shape[1], frames.shape[2], frames.shape[0]


def _tiles(results: Results, scene: Scene) -> Tiles:
    return make_tiles([results.frames(key, scene) for key in results.keys], results.fps)


def _data(results: Results, tiles: dict[Scene, Tiles]) -> dict[str, Any]:
    """Return what the script of the page draws."""
    rows = results.document["rows"]
    return {
        "fps": results.fps,
        "labels": [{"name": "dense", "floor": False, "score": ""}, *map(_label, rows)],
        "metrics": _METRICS,
        "points": [_point(row, index + 1) for index, row in enumerate(rows)],
        "scenes": [
            {"tiles": one.as_dict(), "series": _series(results, scene)}
            for scene, one in tiles.items()
        ],
        "maps": [entry for row in rows if (entry := _maps(results, row)) is not None],
    }


def _label(row: dict[str, Any]) -> dict[str, Any]:
    score = "equal" if row["identical"] else f"{row['psnr']:.1f} dB"
    return {"name": row["method"], "floor": row["role"] == "floor", "score": score}


def _point(row: dict[str, Any], index: int) -> dict[str, Any]:
    # Results of earlier versions have the mean of the clips' ratios there, another figure than the
    # table's.
    speedup = {**row["intervals"]["speedup"], "mean": row["speedup"]}
    return {
        "name": row["method"],
        "index": index,
        "floor": row["role"] == "floor",
        "density": row["density"],
        "verdict": row["verdict"],
        "intervals": {**row["intervals"], "speedup": speedup},
    }


def _series(results: Results, scene: Scene) -> dict[str, list[list[float | None] | None]]:
    """Return per metric one list of per-frame values per contender; dense has none."""
    found: dict[str, list[list[float | None] | None]] = {
        name: [None] for name in ("psnr", "ssim", "lpips", "flicker", "warped_error")
    }
    for key in results.keys[1:]:
        quality = results.facts(key, scene).quality
        assert quality is not None, "only the dense clip has no quality"
        for name, values in _frame_values(quality).items():
            found[name].append(None if values is None else [_rounded(value) for value in values])
    return found


def _frame_values(quality: Quality) -> dict[str, list[float] | None]:
    own = quality.warped_error_reference or ()
    excess = [(a - b) * 1e4 for a, b in zip(quality.warped_error or (), own, strict=True)]
    return {
        "psnr": list(quality.psnr),
        "ssim": list(quality.ssim),
        "lpips": None if quality.lpips is None else list(quality.lpips),
        "flicker": [value * 1000 for value in quality.flicker],
        "warped_error": excess,
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _maps(results: Results, row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the tables of one method: by head where they were recorded, else by layer."""
    recorded = results.maps(row["key"])
    if recorded is None:
        facts = [results.facts(row["key"], scene) for scene in results.scenes]
        tables = _layer_tables(facts)
    else:
        tables = _head_tables(recorded)
    return {"name": row["method"], "tables": tables} if tables else None


def _head_tables(recorded: dict[str, Any]) -> list[dict[str, Any]]:
    several = len(recorded["transformers"]) > 1
    return [
        {
            "title": f"{kind}, {found['transformer']}" if several else kind,
            "steps": found["steps"],
            "byHead": True,
            "values": [
                [None if heads[0] is None else heads for heads in layers] for layers in found[kind]
            ],
        }
        for found in recorded["transformers"]
        for kind in ("density", "recall")
    ]


def _layer_tables(clips: list[ClipFacts]) -> list[dict[str, Any]]:
    sites = [site for clip in clips for site in clip.sites]
    names = dict.fromkeys(site.transformer for site in sites)
    return [_layer_table(name, sites, several=len(names) > 1) for name in names]


def _layer_table(name: str, sites: list[SiteDensity], *, several: bool) -> dict[str, Any]:
    own = [site for site in sites if site.transformer == name]
    steps = sorted({site.step for site in own})
    # Dense calls are recorded with density 1; they are no choice of the method.
    total = np.zeros((len(steps), max(site.layer for site in own) + 1))
    count = np.zeros_like(total)
    for site in (one for one in own if one.density < 1):
        where = steps.index(site.step), site.layer
        total[where] += site.density
        count[where] += 1
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    values = [[_rounded(value) for value in column] for column in mean.tolist()]
    title = f"density, {name}" if several else "density"
    return {"title": title, "steps": steps, "byHead": False, "values": values}
