"""Make the tables of the pages from results files and registries: nothing is typed by hand.

``python -m vidsparse.profiling.tables --write README.md`` replaces what stands between markers such
as ``<!-- results -->`` and ``<!-- end of results -->``; ``--check README.md`` fails when something
differs. ``results`` is every results file, ``headline`` the ones that a newcomer asks for.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsparse.errors import UsageError
from vidsparse.files import write_text

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Kind:
    """A kind of results file.

    Attributes:
        prefix: of its name.
        title: heading of its table.
        columns: keys of its rows and their headings, in order; keys no row has are left out.
        headline: whether its tables belong to the headline.
    """

    prefix: str
    title: str
    columns: dict[str, str]
    headline: bool = False


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
            "compensation_ms": "compensation in it (ms)",
            "total_ms": "total (ms)",
            "dense_ms": "dense (ms)",
            "overhead_fraction": "overhead / dense",
            "attention_speedup": "speed-up of attention",
        },
        headline=True,
    ),
    Kind(
        "model",
        "Denoising steps of released transformers, random weights",
        {
            "shape": "shape",
            "tokens": "tokens",
            "layers": "layers run",
            "method": "method",
            "compiled": "compiled",
            "density": "density",
            "dense_ms": "dense step (ms)",
            "step_ms": "sparse step (ms)",
            "attention_share": "attention's share",
            "attention_speedup": "speed-up of attention",
            "step_speedup": "of a step",
            "amdahl_fraction": "of the ceiling",
            "e2e_speedup_50": "of 50 steps, 10 dense",
            "dense_backend": "dense backend",
        },
        headline=True,
    ),
    Kind(
        "families",
        "Model families at released sizes, random weights",
        {
            "pipeline": "pipeline",
            "transformer": "transformer",
            "heads": "heads",
            "tokens": "tokens",
            "head_size": "D",
            "dense_equal": "density 1 equals dense",
            "difference": "difference",
            "difference_float32": "in float32",
            "density": "density",
            "sparse_calls": "sparse calls",
            "sparse_finite": "finite",
        },
    ),
    Kind(
        "compensation",
        "What compensation costs",
        {
            "case": "case",
            "impl": "kernel",
            "heads": "heads",
            "density": "density",
            "kernel_ms": "plain (ms)",
            "compensated_ms": "compensated (ms)",
            "means_ms": "means alone (ms)",
            "extra_fraction": "extra",
        },
    ),
    Kind(
        "tune",
        "A tuned preset on held-out prompts, beside every method's defaults at equal time",
        {
            "case": "case",
            "setting": "setting",
            "grid": "grid",
            "num_steps": "steps",
            "clips": "clips",
            "density": "density",
            "speedup": "speed-up of denoising",
            "predicted_speedup": "predicted",
            "psnr": "PSNR (dB)",
            "psnr_low": "from",
            "psnr_high": "to",
            "gain_db": "tuned preset's gain (dB)",
            "gain_low": "gain from",
            "gain_high": "gain to",
            "meets": "meets the target",
            "same_preset": "same after kill -9",
        },
    ),
    Kind(
        "statistics",
        "What reporting on tiles while attending costs",
        {
            "case": "case",
            "heads": "heads",
            "density": "density",
            "statistic": "statistic",
            "ms": "time (ms)",
            "dense_ms": "dense (ms)",
            "over_plain": "over plain",
            "over_linear": "over the full mask's time x density",
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
        headline=True,
    ),
)

# The quality overview: one grid, one column of PSNR for each density.
_OVERVIEW_GRID, _OVERVIEW_DENSITIES = "gpu", (0.5, 0.25, 0.125)


def results_tables(folder: Path = RESULTS) -> str:
    """Return Markdown: one table per results file, with what it was measured on and how.

    Args:
        folder: holds ``<kind>-<name>.json`` files of ``{"meta": ..., "rows": [...]}``; files of
            other kinds are left out.
    """
    return "\n\n".join(_sections(folder, KINDS))


def headline_tables(folder: Path = RESULTS) -> str:
    """Return Markdown: an overview of quality, then the tables that newcomers ask for."""
    kinds = [kind for kind in KINDS if kind.headline]
    return "\n\n".join([quality_overview(folder), *_sections(folder, kinds)])


def quality_overview(folder: Path = RESULTS) -> str:
    """Return Markdown: PSNR by density on one grid, of what was measured on the most clips."""
    rows = [
        row
        for path in sorted(folder.glob("quality-*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
        if row["grid"] == _OVERVIEW_GRID
        and row["psnr"] is not None
        and row["requested_density"] in _OVERVIEW_DENSITIES
    ]
    clips = max((row["clips"] for row in rows), default=0)
    found = {(r["method"], r["requested_density"]): r["psnr"] for r in rows if r["clips"] == clips}
    densities = [d for d in _OVERVIEW_DENSITIES if any(d == density for _, density in found)]

    def best_first(method: str) -> list[float]:
        return [-found.get((method, density), 0.0) for density in densities]

    methods = sorted({method for method, _ in found}, key=best_first)
    header = ["method", *(f"PSNR at {d} (dB)" for d in densities)]
    lines = [[method, *(cell(found.get((method, d))) for d in densities)] for method in methods]
    title = f"### Quality of the bundled model, grid `{_OVERVIEW_GRID}`, {clips} clips"
    return "\n".join([title, "", _table(header, lines)])


def _sections(folder: Path, kinds: Sequence[Kind]) -> list[str]:
    return [
        _section(kind, path)
        for kind in kinds
        for path in sorted(folder.glob(f"{kind.prefix}-*.json"))
    ]


def _section(kind: Kind, path: Path) -> str:
    document = json.loads(path.read_text(encoding="utf-8"))
    meta, rows = document["meta"], document["rows"]
    columns = {key: name for key, name in kind.columns.items() if any(key in row for row in rows)}
    lines = [
        f"### {kind.title}: `{path.stem}`",
        "",
        f"{meta['device']}, torch {meta['torch']}, commit {meta['commit'] or 'unknown'}, "
        f"{meta['date'][:10]}: `{meta['command']}`",
        *(["", f"Note: {meta['note']}."] if meta.get("note") else []),
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


def tables_of(page: str, folder: Path = RESULTS) -> dict[str, str]:
    """Return the tables that a page has markers for, by their names.

    Raises:
        UsageError: it has none.
    """
    makers: dict[str, Callable[[], str]] = {
        "methods": methods_table,
        "pipelines": pipelines_table,
        "headline": lambda: headline_tables(folder),
        "results": lambda: results_tables(folder),
    }
    found = {name: make() for name, make in makers.items() if f"<!-- {name} -->" in page}
    if not found:
        raise UsageError(f"the page has no <!-- name --> of {', '.join(makers)}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.tables")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", type=Path, metavar="PAGE")
    choice.add_argument("--check", type=Path, metavar="PAGE")
    options = parser.parse_args(arguments)
    page = options.write or options.check
    old = page.read_text(encoding="utf-8")
    new = with_tables(old, tables_of(old))
    if options.write:
        write_text(page, new)
        return 0
    if old != new:
        sys.stderr.write(f"{page} is not what the results say; run: make tables\n")
    return int(old != new)


if __name__ == "__main__":
    raise SystemExit(main())
