"""A comparison as a table for the terminal and as a JSON document."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.video import write_text

if TYPE_CHECKING:
    from rich.table import Table

TIMED = (
    "speed-up: dense over sparse denoising time of this run, from the first transformer call's "
    "start to the last one's end; text encoding and VAE decoding are not in it"
)
DENSITIES = (
    "density: share of query-key pairs kept, as realised, over the sparse calls; "
    "overall: dense steps and layers counted as 1"
)
AGGREGATES = (
    "PSNR: mean of frames, then of clips, on 8-bit frames; psnr_pooled in JSON is that of the "
    "error pooled over all frames; ± is half of the 95 % bootstrap interval over clips"
)
FLICKER = (
    "flicker: mean |change of the video - change of dense| from frame to frame, in 1/1000 of full "
    "scale"
)
VERDICTS = (
    "verdict: indistinguishable = not worse than the floor (0.5 dB, 0.005 SSIM) on paired clips; "
    "same content = at least 90 % of clips keep it, by the content check and SSIM between another "
    "seed's clip and the floor; else diverged (the whole rule: vidsparse.quality.verdict)"
)
MEANINGS = (TIMED, DENSITIES, AGGREGATES, FLICKER, VERDICTS)
HEADERS = (
    "method",
    "speed-up",
    "density",
    "overall",
    "PSNR dB",
    "SSIM",
    "LPIPS",
    "flicker",
    "content",
    "verdict",
)
_TEXT = ("method", "content", "verdict")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Format one row of ``Comparison.rows`` for people, in the order of ``HEADERS``."""
    return (
        row["method"] + (" (floor)" if row["role"] == "floor" else ""),
        f"{row['speedup']:.2f}x",
        f"{row['density']:.3f}",
        f"{row['overall_density']:.3f}",
        "inf" if row["identical"] else f"{row['psnr']:.2f}{half_width(row, 'psnr')}",
        f"{row['ssim']:.4f}",
        f"{row['lpips']:.4f}" if isinstance(row["lpips"], float) else "n/a",
        "n/a" if row["flicker"] is None else f"{row['flicker'] * 1000:.2f}",
        content_text(row["content"]),
        row["verdict"],
    )


def half_width(row: dict[str, Any], metric: str) -> str:
    """Return half of a metric's interval as " ±x"; nothing for one clip."""
    interval = row["intervals"].get(metric)
    if interval is None or interval["low"] is None:
        return ""
    return f" ±{(interval['high'] - interval['low']) / 2:.2f}"


def content_text(content: dict[str, float] | None) -> str:
    """Format the content score: how often shape, colour and direction are the caption's."""
    if content is None:
        return "-"
    return ", ".join(f"{name} {share:.0%}" for name, share in content.items())


def table(document: dict[str, Any]) -> "Table":
    """Return the table the terminal shows."""
    from rich.table import Table

    count = len(document["scenes"])
    made = Table(title=f"against dense, {count} clip{'s' if count > 1 else ''}")
    for header in HEADERS:
        text = header in _TEXT
        made.add_column(header, justify="left" if text else "right", no_wrap=not text)
    for row in document["rows"]:
        made.add_row(*cells(row))
    return made


def notes(document: dict[str, Any]) -> list[str]:
    """Return what was found, what is missing, and what the table's columns mean."""
    return [*findings(document), *MEANINGS]


def findings(document: dict[str, Any]) -> list[str]:
    """Return what the table does not say: dense, floor, reasons, what is unavailable."""
    dense, rows = document["dense"], document["rows"]
    missing = {row["lpips"]: "LPIPS" for row in rows if isinstance(row["lpips"], str)}
    floor = [row for row in rows if row["role"] == "floor"]
    what = f"floor: {floor[0]['method']} against dense, same seeds" if floor else NO_FLOOR
    return [
        f"dense: {dense['denoise_seconds']:.2f} s of denoising a clip"
        + (f"; content: {content_text(dense['content'])}" if dense["content"] else ""),
        what,
        *(f"{row['method']}: {row['reason']}" for row in rows if row["role"] == "method"),
        *(f"{name} {note}" for note, name in missing.items()),
    ]


def headline(document: dict[str, Any]) -> str:
    """Return one sentence: the fastest method that keeps what dense shows."""
    rows = [row for row in document["rows"] if row["role"] == "method"]
    good = [row for row in rows if row["verdict"] in ("indistinguishable", "same content")]
    if not good:
        return "No method was found to keep what dense shows."
    best = max(good, key=lambda row: row["speedup"])
    psnr = "equal frames" if best["identical"] else f"{best['psnr']:.1f} dB"
    return (
        f"Fastest that keeps what dense shows: {best['method']}, {best['speedup']:.2f}x at "
        f"{psnr} ({best['verdict']})."
    )


NO_FLOOR = "floor: not measured (--floor none), so no method can be told from noise"


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all; infinite numbers are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
