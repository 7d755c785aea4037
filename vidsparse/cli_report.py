"""``vidsparse report``."""

from pathlib import Path
from typing import Annotated

import typer

from vidsparse.errors import UsageError


def report(
    results: Annotated[Path, typer.Argument(help="Folder that 'compare --out' made.")],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("report.html"),
    scenes: Annotated[int, typer.Option(help="Clips whose videos the page holds, at most.")] = 6,
) -> None:
    """Make one self-contained page of a comparison: players, charts, maps."""
    from vidsparse.files import check_file_name
    from vidsparse.report import Results, write_report

    if scenes < 1:
        raise UsageError(f"--scenes {scenes} must be at least 1")
    check_file_name(out)
    write_report(out, Results.load(results), most_scenes=scenes)
    typer.echo(f"wrote {out}, {out.stat().st_size / 2**20:.1f} MiB; open it in any browser")
