"""``vidsparse compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse import cli_common as common
from vidsparse.cli_generate import (
    DEFAULT_PROMPT,
    load_for_sampling,
    note_unknown_words,
    sparse_requests,
)
from vidsparse.errors import UsageError

if TYPE_CHECKING:
    from vidsparse.compare import Comparison, Contender, Scene
    from vidsparse.generate import Sampling
    from vidsparse.request import SparseRequest


def compare(
    method: Annotated[
        list[str] | None, typer.Option(help="Method, or name:key=value:...; repeatable.")
    ] = None,
    density: common.Density = None,
    preset: common.Preset = None,
    dense_steps: common.DenseSteps = None,
    dense_layers: common.DenseLayers = None,
    impl: common.Impl = "auto",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the video shows; repeatable. Default: one the model knows."),
    ] = None,
    clips: Annotated[int, typer.Option(help="Seeds per prompt, counted from --seed.")] = 1,
    model: common.Model = "tiny",
    grid: common.Grid = None,
    height: common.Height = None,
    width: common.Width = None,
    num_frames: common.NumFrames = None,
    steps: common.Steps = None,
    guidance: common.Guidance = None,
    seed: common.Seed = 0,
    fps: common.Fps = 16,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    floor: Annotated[
        bool, typer.Option("--floor", help="Also compare dense with dense in the other precision.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the MP4 and the contact sheet.")] = Path(
        "out/compare"
    ),
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write JSON; - for standard output.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page.")] = None,
) -> None:
    """Generate densely and sparsely; table of speed and quality."""
    from vidsparse.generate import Sampling
    from vidsparse.loading import pick_device
    from vidsparse.video import check_file_name

    files = [out / "side-by-side.mp4", report, Path(json) if json not in (None, "-") else None]
    for path in files:
        if path is not None:
            check_file_name(path)
    shared = common.shared_request(density, preset, dense_steps, dense_layers, impl)
    requests = sparse_requests(method, shared)
    shared.check_device(pick_device(device))
    scenes = _scenes(prompt, seed, clips)
    asked = Sampling(height, width, num_frames, steps, guidance)
    quiet = json == "-"
    pipe, sampling = load_for_sampling(model, grid, asked, device, dtype, quiet=quiet)
    note_unknown_words(model, [scene.prompt for scene in scenes])
    contenders = _contenders(pipe, requests)
    if floor:
        contenders.append(_floor(model, pipe, device, quiet=quiet))
    made = _run(pipe, contenders, scenes, sampling, model, quiet=quiet)
    _deliver(made, _meta(pipe, model, sampling), out, json, report, fps)


def _scenes(prompts: list[str] | None, seed: int, clips: int) -> "list[Scene]":
    from vidsparse.compare import Scene

    if clips < 1:
        raise UsageError(f"--clips {clips} must be at least 1")
    return [Scene(prompt, seed + i) for prompt in prompts or [DEFAULT_PROMPT] for i in range(clips)]


def _contenders(pipe: Any, requests: "list[SparseRequest]") -> "list[Contender]":
    from vidsparse.compare import Contender

    return [Contender(request.label, pipe, request) for request in requests]


def _floor(model: str, pipe: Any, device: str, *, quiet: bool) -> "Contender":
    """Return dense generation in the other precision: differences below it mean nothing."""
    import torch

    from vidsparse.compare import Contender
    from vidsparse.loading import load_pipeline, pick_device

    other = torch.bfloat16 if pipe.transformer.dtype == torch.float32 else torch.float32
    with common.waiting(f"loading {model} in {other}", quiet=quiet):
        second = load_pipeline(model, device=pick_device(device), dtype=other)
    return Contender(f"dense {str(other).removeprefix('torch.')}", second)


def _run(
    pipe: Any,
    contenders: "list[Contender]",
    scenes: "list[Scene]",
    sampling: "Sampling",
    model: str,
    *,
    quiet: bool,
) -> "Comparison":
    from vidsparse.compare import Contender, compare
    from vidsparse.quality import load_lpips

    dense = Contender("dense", pipe)
    with common.progress_bars(quiet=quiet) as bars:
        return compare(
            dense,
            contenders,
            scenes,
            sampling,
            lpips=load_lpips(pipe.device),
            judge_content=_can_judge(model, scenes),
            on_progress=bars,
        )


def _can_judge(model: str, scenes: "list[Scene]") -> bool:
    """Say whether every prompt is a sentence whose truth can be checked in the video."""
    from vidsparse.loading import is_bundled
    from vidsparse.models.grammar import parse_caption

    try:
        return is_bundled(model) and all(parse_caption(scene.prompt) for scene in scenes)
    except ValueError:
        return False


def _meta(pipe: Any, model: str, sampling: "Sampling") -> dict[str, Any]:
    from vidsparse.profiling.environment import run_meta

    dtype = str(pipe.transformer.dtype).removeprefix("torch.")
    return {
        "model": model,
        "dtype": dtype,
        "sampling": sampling.arguments(),
        **run_meta(pipe.device),
    }


def _deliver(
    made: "Comparison",
    meta: dict[str, Any],
    out: Path,
    json: str | None,
    report: Path | None,
    fps: float,
) -> None:
    from vidsparse import report as pages

    written = pages.write_pictures(out, made, fps=fps)
    if report is not None:
        pages.write_report(report, made, meta)
        written.append(report)
    if json == "-":
        common.print_json(pages.document(made, meta))
        return
    if json is not None:
        pages.write_json(Path(json), pages.document(made, meta))
        written.append(Path(json))
    from rich.console import Console

    Console().print(pages.table(made))
    for line in pages.notes(made):
        typer.echo(line)
    typer.echo("wrote " + ", ".join(map(str, written)))
