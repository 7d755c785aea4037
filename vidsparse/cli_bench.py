"""``vidsparse bench``: time kernels and methods."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vidsparse import cli_common as common
from vidsparse.errors import UsageError

bench = typer.Typer(
    help="Time kernels or whole methods against dense attention.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
# Of methods timed without --density: what always stays of the small case is 0.375.
_DENSITIES = {True: [0.5, 0.25], False: [0.5, 0.4]}

Out = Annotated[Path | None, typer.Option(help="Results file (JSON) to write.")]


@bench.command()
def methods(
    case: Annotated[
        list[str] | None, typer.Option(help="Shape, repeatable; by device when left out.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Method, or name:key=value:...; repeatable.")
    ] = None,
    density: Annotated[
        list[float] | None, typer.Option(help="In (0, 1]; repeatable; by device when left out.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Denoising steps timed.")] = 7,
    device: common.Device = "auto",
    json: common.JsonFlag = False,
    out: Out = None,
) -> None:
    """Time whole methods, part by part, beside dense."""
    from vidsparse.loading import pick_device
    from vidsparse.profiling.bench_methods import CASES, bench_methods
    from vidsparse.profiling.method_spec import parse_method

    _check_out(out)
    where = pick_device(device)
    names = case or (["wan14b-720p-8heads"] if where.type == "cuda" else ["tiny"])
    cases = [_known("case", name, CASES) for name in names]
    chosen, densities = method or ["svg"], density or _DENSITIES[where.type == "cuda"]
    for name in chosen:
        for value in densities:
            parse_method(name, value)
    total = len(cases) * len(chosen) * len(densities)
    with common.progress_bars(quiet=json) as bars:
        rows = []
        for row in bench_methods(
            cases, chosen, densities, device=where, repeats=repeats, on_skip=common.note
        ):
            rows.append(row)
            # Methods with phases give several rows.
            bars("measured", len(rows), max(total, len(rows)))
    _deliver(rows, where, json, out)


@bench.command()
def kernels(
    case: Annotated[
        list[str] | None, typer.Option(help="Shape, repeatable; all made for the device if not.")
    ] = None,
    impl: Annotated[
        list[str] | None, typer.Option(help="Implementation, repeatable; by device if not.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each function.")] = 20,
    device: common.Device = "auto",
    json: common.JsonFlag = False,
    out: Out = None,
) -> None:
    """Time block-sparse kernels, checked first, beside dense."""
    from vidsparse.kernels.block_sparse_attention import Impl
    from vidsparse.loading import pick_device
    from vidsparse.profiling.bench import default_cases, default_impls

    _check_out(out)
    where = pick_device(device)
    known = default_cases(where)
    for name in case or []:
        _known("case", name, {one.name: one for one in known})
    cases = [one for one in known if case is None or one.name in case]
    names = {one.value: one for one in Impl if one is not Impl.AUTO}
    impls = [_known("impl", name, names) for name in impl or []] or default_impls(where)
    dtype = "float32" if where.type == "cpu" else "bfloat16"
    _kernels(cases, impls, where, dtype, repeats, json, out)


@bench.command()
def cpu(
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each function.")] = 20,
    json: common.JsonFlag = False,
    out: Out = None,
) -> None:
    """Time the CPU kernel beside dense at 2k to 4k tokens."""
    import torch

    from vidsparse.kernels.block_sparse_attention import Impl
    from vidsparse.profiling.kernel_cases import CPU_CASES

    _check_out(out)
    _kernels(CPU_CASES, [Impl.TORCH], torch.device("cpu"), "float32", repeats, json, out)


@bench.command()
def model(
    shape: Annotated[
        str | None, typer.Option(help="Released transformer and size; by device if not given.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method, name:key=value:... or name@8bit; repeatable."),
    ] = None,
    density: Annotated[float, typer.Option(help="In (0, 1).")] = 0.25,
    layers: Annotated[
        int | None, typer.Option(help="Build only so many blocks, to save time and memory.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each method.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile the blocks, dense and sparse alike.")
    ] = False,
    device: common.Device = "auto",
    json: common.JsonFlag = False,
    out: Out = None,
) -> None:
    """Time denoising steps of a released transformer with random weights, beside dense."""
    from vidsparse.choices import check_precision
    from vidsparse.loading import pick_device
    from vidsparse.profiling.bench_model import ModelBench, compiler_of
    from vidsparse.profiling.method_spec import parse_method
    from vidsparse.profiling.model_shapes import find_shape

    _check_out(out)
    if not 0 < density < 1:
        raise UsageError(f"--density {density} must lie in (0, 1); dense is timed beside it anyway")
    where = pick_device(device)
    chosen = method or ["svg", "draft", "svg2", "adaspa", "lite"]
    for spec in chosen:
        name, at, precision = spec.partition("@")
        parse_method(name, density)
        if at:
            check_precision(precision)
    found = find_shape(shape or ("wan2.1-1.3b-480p" if where.type == "cuda" else "tiny-cpu"))
    timed = ModelBench(found, where, layers, compiler_of(compiled))
    with common.progress_bars(quiet=json) as bars:
        rows = []
        for row in timed.rows(chosen, density, rounds=rounds, on_skip=common.note):
            rows.append(row)
            bars("methods", len(rows), len(chosen))
    _deliver(rows, where, json, out)


def _kernels(
    cases: Any, impls: Any, device: Any, dtype: str, repeats: int, json: bool, out: Path | None
) -> None:
    from vidsparse.loading import DTYPES
    from vidsparse.profiling.bench import bench_case

    rows: list[dict[str, Any]] = []
    with common.progress_bars(quiet=json) as bars:
        for done, case in enumerate(cases, start=1):
            rows += bench_case(case, impls, device, dtype=DTYPES[dtype], repeats=repeats)
            bars("cases", done, len(cases))
    if not rows:
        raise UsageError(
            f"none of {', '.join(one.value for one in impls)} runs on {device}; see: "
            "vidsparse doctor"
        )
    _deliver(rows, device, json, out)


def _check_out(out: Path | None) -> None:
    """Refuse a name that results could not be written to once they are measured."""
    if out is not None:
        from vidsparse.files import check_file_name

        check_file_name(out)


def _known(kind: str, name: str, table: dict[str, Any]) -> Any:
    if name not in table:
        raise UsageError(f"unknown {kind} {name!r}; choose one of {', '.join(table)}")
    return table[name]


def _deliver(rows: list[dict[str, Any]], device: Any, json: bool, out: Path | None) -> None:
    from vidsparse.profiling.environment import run_meta

    if not rows:
        raise UsageError("nothing was timed; the reasons stand above")
    document: dict[str, Any] = {"meta": run_meta(device), "rows": rows}
    # Shown before it is written: what was measured must outlive a full disk.
    if json:
        common.print_json(document)
    else:
        typer.echo(document["meta"]["device"])
        typer.echo(_table(rows))
    if out is None:
        return
    from vidsparse.report import write_json

    write_json(out, document)
    if not json:
        typer.echo(f"wrote {out}")


_HIDDEN = ("spread_ms",)  # in the JSON; the table is wide enough


def _table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out in columns, never cut to the terminal's width: figures must stay whole."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in _HIDDEN))
    lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
