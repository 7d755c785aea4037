"""Turn results files into the tables of README.md, so that no figure is typed by hand.

``python -m vidsparse.profiling.tables`` prints them; ``--write README.md`` replaces what stands
between the markers ``<!-- results -->`` and ``<!-- end of results -->``; ``--check README.md``
fails when they differ.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsparse.errors import UsageError
from vidsparse.video import write_text

RESULTS = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Kind:
    """A kind of results file.

    Attributes:
        prefix: of its name.
        title: heading of its table.
        columns: keys of its rows and their headings, in order; keys no row has are left out.
    """

    prefix: str
    title: str
    columns: dict[str, str]


KINDS = (
    Kind(
        "compare",
        "Whole generations",
        {
            "method": "method",
            "speedup": "speed-up of denoising",
            "density": "density",
            "overall_density": "overall density",
            "psnr": "PSNR (dB)",
            "ssim": "SSIM",
            "lpips": "LPIPS",
        },
    ),
    Kind(
        "quality",
        "Quality against dense",
        {
            "method": "method",
            "grid": "grid",
            "tokens": "tokens",
            "density": "density",
            "recall": "recall",
            "oracle_recall": "oracle's recall",
            "psnr": "PSNR (dB)",
            "floor_psnr": "bf16 against fp32 (dB)",
            "clips": "clips",
        },
    ),
    Kind(
        "methods",
        "Time of whole methods, one attention layer",
        {
            "case": "case",
            "method": "method",
            "density": "density",
            "plan_ms": "plan (ms)",
            "permute_ms": "permute (ms)",
            "kernel_ms": "kernel (ms)",
            "total_ms": "total (ms)",
            "dense_ms": "dense (ms)",
            "overhead_fraction": "overhead / dense",
            "attention_speedup": "speed-up of attention",
        },
    ),
    Kind(
        "kernels",
        "Kernels",
        {
            "case": "case",
            "impl": "kernel",
            "density": "density",
            "kernel_ms": "time (ms)",
            "plan_ms": "lists (ms)",
            "dense_ms": "dense (ms)",
            "dense_backend": "dense backend",
            "eff_tflops": "useful TFLOP/s",
            "fraction_of_ideal": "of ideal",
            "rel_error": "error",
        },
    ),
)


def results_tables(folder: Path = RESULTS) -> str:
    """Return Markdown: one table per results file, with what it was measured on and how.

    Args:
        folder: holds ``<kind>-<name>.json`` files of ``{"meta": ..., "rows": [...]}``; files of
            other kinds are left out.
    """
    parts = [
        _section(kind, path)
        for kind in KINDS
        for path in sorted(folder.glob(f"{kind.prefix}-*.json"))
    ]
    return "\n\n".join(parts)


def _section(kind: Kind, path: Path) -> str:
    document = json.loads(path.read_text(encoding="utf-8"))
    meta, rows = document["meta"], document["rows"]
    columns = {key: name for key, name in kind.columns.items() if any(key in row for row in rows)}
    lines = [
        f"### {kind.title}: `{path.stem}`",
        "",
        f"{meta['device']}, torch {meta['torch']}, commit {meta['commit'] or 'unknown'}, "
        f"{meta['date'][:10]}: `{meta['command']}`",
        "",
        _line(columns.values()),
        _line("---" for _ in columns),
        *(_line(cell(row.get(key)) for key in columns) for row in rows),
    ]
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def cell(value: object) -> str:
    """Format one value: four significant digits, a dash for none, notes cut to their head."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).split(":")[0] if str(value).startswith("unavailable") else str(value)


def with_tables(page: str, tables: str) -> str:
    """Return a page with the tables between its markers.

    Raises:
        UsageError: the page lacks the markers.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the page has no {BEGIN} and {END}; put both where the tables belong")
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{tail}" if tables else f"{head}{BEGIN}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.tables")
    parser.add_argument("--results", type=Path, default=RESULTS)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--write", type=Path, metavar="PAGE")
    choice.add_argument("--check", type=Path, metavar="PAGE")
    options = parser.parse_args(arguments)
    tables = results_tables(options.results)
    page = options.write or options.check
    if page is None:
        sys.stdout.write(tables + "\n")
        return 0
    old = page.read_text(encoding="utf-8")
    new = with_tables(old, tables)
    if options.write:
        write_text(page, new)
        return 0
    if old != new:
        sys.stderr.write(f"{page} is not what the results say; run with --write {page}\n")
    return int(old != new)


if __name__ == "__main__":
    raise SystemExit(main())
