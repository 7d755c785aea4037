"""What the commands share: options, progress bars, output. Imports nothing heavy."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from vidsparse.request import SparseRequest

Model = Annotated[
    str,
    typer.Option(help="Bundled model, diffusers folder, or cached Hugging Face repository."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto (bfloat16 where native, else float32) or a dtype.")]
Grid = Annotated[str | None, typer.Option(help="Grid of a bundled model, as in 'models'.")]
Height = Annotated[int | None, typer.Option(help="Pixels.")]
Width = Annotated[int | None, typer.Option(help="Pixels.")]
NumFrames = Annotated[int | None, typer.Option(help="Frames of the clip.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the initial noise.")]
Fps = Annotated[float, typer.Option(min=1, max=240, help="Frames per second of the MP4.")]
Density = Annotated[float | None, typer.Option(help="Share of query-key pairs to keep, in (0, 1].")]
Preset = Annotated[str | None, typer.Option(help="Preset: a .toml or .json file, or a name.")]
DenseSteps = Annotated[
    str | None, typer.Option(help="Steps that stay dense: a count (3) or a share (0.2).")
]
DenseLayers = Annotated[
    str | None, typer.Option(help="Layers that stay dense: a count (1) or a share (0.05).")
]
Force = Annotated[bool, typer.Option("--force", help="Use a preset made for another model.")]
Impl = Annotated[
    str | None, typer.Option(help="Kernel implementation, as in 'doctor'; the preset's, or auto.")
]
Precision = Annotated[
    str | None, typer.Option(help="native, 8bit-sparse (sparse calls) or 8bit (dense calls too).")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def shared_request(
    density: float | None,
    preset: str | None,
    dense_steps: str | None,
    dense_layers: str | None,
    impl: str | None,
    precision: str | None = None,
    *,
    force: bool = False,
) -> "SparseRequest":
    """Collect the options that hold for every method of a command."""
    from vidsparse.choices import check_precision
    from vidsparse.request import SparseRequest, parse_count_or_share

    return SparseRequest(
        label=Path(preset).stem if preset else "",
        method=None,
        density=density,
        preset=preset,
        dense_steps=parse_count_or_share(dense_steps, "--dense-steps"),
        dense_layers=parse_count_or_share(dense_layers, "--dense-layers"),
        impl=impl,
        precision=None if precision is None else check_precision(precision),
        force=force,
    )


def stderr_console() -> "Console":
    """Return the console for progress and notes; results go to standard output."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """Print a remark to standard error."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print indented JSON to standard output."""
    from vidsparse.files import json_text

    typer.echo(json_text(value, indent=2))


@contextmanager
def waiting(text: str, *, quiet: bool) -> Iterator[None]:
    """Show a spinner while something of unknown length happens; silent when ``quiet``."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    with stderr_console().status(text):
        yield


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar per name on a terminal; the function takes name, steps done, all steps."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    silent = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=stderr_console(), disable=silent, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def update(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield update


def quiet_libraries() -> None:
    """Keep diffusers' and transformers' bars and remarks on optional parts off the terminal."""
    import logging
    import warnings

    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torchmetrics|lpips|torchvision")
