"""A comparison as a table for the terminal and as a JSON document."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.files import json_text, write_text

if TYPE_CHECKING:
    from rich.table import Table

TIMED = (
    "speed-up: dense over sparse denoising time, of all clips together (± is half of "
    "the 95 % interval of that ratio over clips), from the first transformer call's "
    "start to the last one's end; text encoding and VAE decoding are not in it"
)
DENSITIES = (
    "density: share of query-key pairs kept, as realised, over the sparse calls; "
    "in brackets: dense steps and layers counted as 1"
)
AGGREGATES = (
    "PSNR: mean of frames, then of clips, on 8-bit frames; psnr_pooled in JSON is that of the "
    "error pooled over all frames; ± is half of the 95 % interval over clips: bootstrap, of fewer "
    "than 10 Student's t where that is wider"
)
FLICKER = (
    "flicker: mean |change of the video - change of dense| from frame to frame, in 1/1000 of full "
    "scale"
)
VERDICTS = (
    "verdict: indistinguishable = not worse than the floor (0.5 dB, 0.005 SSIM) on paired clips; "
    "same content = at least 90 % of clips have an SSIM past halfway from another seed's clip to "
    "the floor, and lose nothing by the content check; else diverged (vidsparse.quality.verdict)"
)
CONTENT = "content: share of clips whose shape/colour/direction is the caption's (bundled model)"
MEANINGS = (TIMED, DENSITIES, AGGREGATES, FLICKER, CONTENT, VERDICTS)
HEADERS = ("method", "speed-up", "density", "PSNR dB", "SSIM", "LPIPS", "flicker", "content %")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Format one row of ``Comparison.rows`` for people, in the order of ``HEADERS``.

    Two lines in some cells keep the table within 80 columns.
    """
    return (
        f"{row['method']}\n{row['verdict']}",
        f"{row['speedup']:.2f}x",
        f"{row['density']:.3f}\n({row['overall_density']:.3f})",
        "inf" if row["identical"] else f"{row['psnr']:.2f}{half_width(row, 'psnr')}",
        f"{row['ssim']:.4f}",
        f"{row['lpips']:.4f}" if isinstance(row["lpips"], float) else "n/a",
        "n/a" if row["flicker"] is None else f"{row['flicker'] * 1000:.2f}",
        "/".join(f"{share * 100:.0f}" for share in (row["content"] or {}).values()) or "-",
    )


def half_width(row: dict[str, Any], metric: str) -> str:
    """Return half of a metric's interval as a line "±x"; nothing for one clip."""
    interval = row["intervals"].get(metric)
    if interval is None or interval["low"] is None:
        return ""
    return f"\n±{(interval['high'] - interval['low']) / 2:.2f}"


def content_text(content: dict[str, float] | None) -> str:
    """Format the content score: how often shape, colour and direction are the caption's."""
    if content is None:
        return "-"
    return ", ".join(f"{name} {share:.0%}" for name, share in content.items())


def table(document: dict[str, Any]) -> "Table":
    """Return the table the terminal shows."""
    from rich import box
    from rich.table import Table

    count = len(document["scenes"])
    title = f"against dense, {count} clip{'s' if count > 1 else ''}"
    made = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = [cells(row) for row in document["rows"]]
    shown = [i for i in range(len(HEADERS)) if any(row[i] not in ("n/a", "-") for row in rows)]
    for i in shown:
        left = HEADERS[i] == "method"
        made.add_column(
            HEADERS[i], justify="left" if left else "right", no_wrap=not left, overflow="fold"
        )
    for row in rows:
        made.add_row(*(row[i] for i in shown), end_section=True)
    return made


def notes(document: dict[str, Any]) -> list[str]:
    """Return what was found, what is missing, and what the table's columns mean."""
    return [*findings(document), *reasons(document), *MEANINGS]


def reasons(document: dict[str, Any]) -> list[str]:
    """Return the figures that decided each verdict."""
    rows = document["rows"]
    return [f"{row['method']}: {row['reason']}" for row in rows if row["role"] == "method"]


def findings(document: dict[str, Any]) -> list[str]:
    """Return what the table does not say: dense, floor, other runs' times, what is missing."""
    dense, rows = document["dense"], document["rows"]
    missing = {row["lpips"]: "LPIPS" for row in rows if isinstance(row["lpips"], str)}
    floor = [row for row in rows if row["role"] == "floor"]
    what = f"floor: {floor[0]['method']} against dense, same seeds" if floor else NO_FLOOR
    return [
        f"dense: {dense['denoise_seconds']:.2f} s of denoising a clip"
        + (f"; content: {content_text(dense['content'])}" if dense["content"] else ""),
        what,
        *(f"{row['method']}: {APART}" for row in rows if row.get("timed_apart")),
        *(f"{name} {note}" for note, name in missing.items()),
    ]


def headline(document: dict[str, Any]) -> str:
    """Return one sentence: the fastest method that keeps what dense shows."""
    rows = [row for row in document["rows"] if row["role"] == "method"]
    good = [row for row in rows if row["verdict"] in ("indistinguishable", "same content")]
    if not good and all(row["verdict"] == "undecided" for row in rows):
        return "One clip does not tell the same content from other: compare with --seeds 2 or more."
    if not good:
        return "No method was found to keep what dense shows."
    best = max(good, key=lambda row: row["speedup"])
    psnr = "equal frames" if best["identical"] else f"{best['psnr']:.1f} dB"
    return (
        f"Fastest that keeps what dense shows: {best['method']}, {best['speedup']:.2f}x at "
        f"{psnr} ({best['verdict']})."
    )


APART = (
    "timed in another run than dense, on a machine that may have been slower or faster; "
    "--fresh times both anew"
)
NO_FLOOR = "floor: not measured (--floor none), so no method can be told from noise"


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all.

    Raises:
        UsageError: a number is not finite, or the file cannot be written.
    """
    write_text(path, json_text(value, indent=2) + "\n")
