"""Make the tables of README.md from results files and registries: nothing is typed by hand.

``python -m vidsparse.profiling.tables --write README.md`` replaces what stands between the markers
``<!-- results -->`` and ``<!-- end of results -->``, and alike for ``methods`` and ``pipelines``;
``--check README.md`` fails when something differs.
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
            "ms_ssim": "MS-SSIM",
            "lpips": "LPIPS",
            "flicker": "flicker",
            "verdict": "verdict",
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
            "phase": "steps",
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


def methods_table() -> str:
    """Return Markdown: every method, what it does and where it comes from."""
    from vidsparse.methods.base import available_methods

    rows = [(f"`{m.name}`", m.summary, m.source) for m in available_methods().values()]
    return _table(("method", "what it keeps", "source"), rows)


def pipelines_table() -> str:
    """Return Markdown: every model family and the pipelines it is tested with."""
    from vidsparse.pipelines.base import available_families

    rows = [
        (f"`{name}`", _codes(family.pipelines), _codes(list(family.models)))
        for name, family in available_families().items()
    ]
    return _table(("family", "pipelines", "transformers"), rows)


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_line(header), _line("---" for _ in header), *map(_line, rows)])


def with_tables(page: str, tables: dict[str, str]) -> str:
    """Return a page with each table between the markers of its name.

    Raises:
        UsageError: the page lacks markers.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise UsageError(f"the page has no {begin} and {end}; put both where the table belongs")
        page = f"{head}{begin}\n{table}\n{end}{tail}" if table else f"{head}{begin}\n{end}{tail}"
    return page


def all_tables(folder: Path = RESULTS) -> dict[str, str]:
    """Return every table of README.md by the name of its markers."""
    return {
        "methods": methods_table(),
        "pipelines": pipelines_table(),
        "results": results_tables(folder),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.tables")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", type=Path, metavar="PAGE")
    choice.add_argument("--check", type=Path, metavar="PAGE")
    options = parser.parse_args(arguments)
    page = options.write or options.check
    old = page.read_text(encoding="utf-8")
    new = with_tables(old, all_tables())
    if options.write:
        write_text(page, new)
        return 0
    if old != new:
        sys.stderr.write(f"{page} is not what the results say; run: make tables\n")
    return int(old != new)


if __name__ == "__main__":
    raise SystemExit(main())
