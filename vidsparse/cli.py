"""The ``vidsparse`` command: help in an instant, heavy imports inside the commands."""

import sys
from typing import Annotated

import typer

from vidsparse import __version__
from vidsparse.cli_bench import bench
from vidsparse.cli_calibrate import calibrate
from vidsparse.cli_compare import compare
from vidsparse.cli_generate import generate
from vidsparse.cli_info import doctor, methods, models
from vidsparse.cli_metrics import metrics
from vidsparse.cli_preset import preset
from vidsparse.cli_profile import profile
from vidsparse.cli_report import report
from vidsparse.cli_tune import tune
from vidsparse.errors import VidsparseError

# Without markup, help needs no rich: half of the time `--help` would take.
app = typer.Typer(
    name="vidsparse",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(compare)
app.command()(metrics)
app.command()(report)
app.command()(methods)
app.command()(models)
app.command()(doctor)
app.add_typer(bench, name="bench")
app.command()(profile)
app.command()(calibrate)
app.add_typer(preset, name="preset")
app.command()(tune)

# Typer re-exports only the leaf of its usage errors; its parent covers unknown options too.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print version.")
    ] = False,
) -> None:
    """Training-free sparse attention for diffusers video pipelines: attach, measure, tune."""


def main() -> None:
    """Run the command line; a mistake of the user's is one line and exit code 2.

    Other exceptions keep their traceback: they are ours to fix.
    """
    try:
        code = app(standalone_mode=False)
    except VidsparseError as error:
        _fail(str(error))
    except typer.Abort:
        _fail("stopped", code=130)
    except _USAGE_ERROR as error:
        _usage_error(error)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: Exception) -> None:
    message = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(message)
        sys.exit(2)
    path = "vidsparse" if context is None else context.command_path
    _fail(f"{message} See: {path} --help")


def _fail(message: str, *, code: int = 2) -> None:
    typer.echo(f"vidsparse: {' '.join(message.split())}", err=True)
    sys.exit(code)
