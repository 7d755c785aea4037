"""Turn a comparison into a table, a JSON document, pictures and a page."""

import base64
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.pictures import contact_sheet, encode_png, side_by_side, write_png
from vidsparse.video import write_frames, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from vidsparse.compare import Comparison

TIMED = (
    "speed-up: dense over sparse denoising time of this run, from the first transformer call's "
    "start to the last one's end; text encoding and VAE decoding are not in it"
)
DENSITIES = (
    "density: share of query-key pairs kept, as realised, over the sparse calls; "
    "overall: dense steps and layers counted as 1"
)
HEADERS = ("method", "speed-up", "density", "overall", "PSNR dB", "SSIM", "LPIPS", "content")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Format one row of ``Comparison.rows`` for people, in the order of ``HEADERS``."""
    return (
        row["method"],
        f"{row['speedup']:.2f}x",
        f"{row['density']:.3f}",
        f"{row['overall_density']:.3f}",
        "inf" if row["identical"] else f"{row['psnr']:.2f}",
        f"{row['ssim']:.4f}",
        f"{row['lpips']:.4f}" if isinstance(row["lpips"], float) else "n/a",
        content_text(row["content"]),
    )


def content_text(content: dict[str, float] | None) -> str:
    """Format the content score: how often shape, colour and direction are the caption's."""
    if content is None:
        return "-"
    return ", ".join(f"{name} {share:.0%}" for name, share in content.items())


def table(comparison: "Comparison") -> "Table":
    """Return the table the terminal shows."""
    from rich.table import Table

    count = len(comparison.scenes)
    made = Table(title=f"against dense, {count} clip{'s' if count > 1 else ''}")
    for header in HEADERS:
        text = header in ("method", "content")
        made.add_column(header, justify="left" if text else "right", no_wrap=not text)
    for row in comparison.rows():
        made.add_row(*cells(row))
    return made


def notes(comparison: "Comparison") -> list[str]:
    """Return what the table's columns mean and what is missing from them."""
    dense = comparison.dense_row()
    missing = [row["lpips"] for row in comparison.rows() if isinstance(row["lpips"], str)]
    return [
        f"dense: {dense['denoise_seconds']:.2f} s of denoising a clip"
        + (f"; content: {content_text(dense['content'])}" if dense["content"] else ""),
        TIMED,
        DENSITIES,
        *(f"LPIPS {note}" for note in missing[:1]),
    ]


def document(comparison: "Comparison", meta: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON document: meta, scenes, the dense reference and one row per method."""
    return {
        "meta": meta,
        "scenes": [asdict(scene) for scene in comparison.scenes],
        "dense": comparison.dense_row(),
        "rows": comparison.rows(),
    }


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all; infinite numbers are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_pictures(folder: Path, comparison: "Comparison", *, fps: float) -> list[Path]:
    """Write ``side-by-side.mp4`` and ``contact-sheet.png`` of the first scene."""
    video, sheet = folder / "side-by-side.mp4", folder / "contact-sheet.png"
    write_frames(video, side_by_side(comparison.clips()), fps=fps)
    write_png(sheet, contact_sheet(comparison.clips()))
    return [video, sheet]


def write_report(path: Path, comparison: "Comparison", meta: dict[str, Any]) -> None:
    """Write one self-contained HTML page: table, contact sheet, PSNR by frame.

    Args:
        path: the page.
        comparison: what to show.
        meta: device, versions, command.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vidsparse"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        scenes=comparison.scenes,
        headers=HEADERS,
        rows=[cells(row) for row in comparison.rows()],
        notes=notes(comparison),
        sheet=base64.b64encode(encode_png(contact_sheet(comparison.clips()))).decode(),
        plot=psnr_plot(comparison),
        meta=meta,
    )
    write_text(path, page)


def psnr_plot(comparison: "Comparison") -> str:
    """Draw PSNR by frame of the first scene, one line per method: an SVG element."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for record in comparison.contenders:
        psnr = [math.nan if math.isinf(value) else value for value in record.quality[0].psnr]
        axes.plot(range(len(psnr)), psnr, marker="o", markersize=3, label=record.label)
    axes.set_xlabel("frame")
    axes.set_ylabel("PSNR against dense (dB)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
