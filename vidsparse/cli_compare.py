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
from vidsparse.cli_progress import clip_progress
from vidsparse.errors import UsageError

if TYPE_CHECKING:
    from vidsparse.clips import FolderClips, Scene
    from vidsparse.compare import Comparison, Contender
    from vidsparse.generate import Sampling
    from vidsparse.request import SparseRequest

# Packages that make clips; others only measure them.
_DECIDING = ("vidsparse", "torch", "triton", "diffusers", "transformers")


def compare(
    method: Annotated[
        list[str] | None, typer.Option(help="Method, or name:key=value:...; repeatable.")
    ] = None,
    density: common.Density = None,
    preset: common.Preset = None,
    force: common.Force = False,
    dense_steps: common.DenseSteps = None,
    dense_layers: common.DenseLayers = None,
    impl: common.Impl = None,
    precision: common.Precision = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the video shows; repeatable. Default: one the model knows."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one prompt a line; # starts a comment.")
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", "--clips", help="Seeds per prompt, counted from --seed.")
    ] = 1,
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
        str,
        typer.Option(
            help="Dense again, to tell noise: precision, backend, none; auto: backend on a GPU."
        ),
    ] = "auto",
    maps: Annotated[
        bool,
        typer.Option(
            "--maps", help="Also record density and recall by layer, step and head, untimed."
        ),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make clips again that an earlier run finished.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for results, clips and pictures.")] = Path(
        "out/compare"
    ),
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write JSON; - for standard output.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page.")] = None,
) -> None:
    """Generate densely and sparsely; table of speed and quality.

    Finished clips are kept in --out: after an interrupt the same command goes on where it was.
    """
    from vidsparse import floors
    from vidsparse.files import check_file_name
    from vidsparse.generate import Sampling
    from vidsparse.loading import pick_device
    from vidsparse.prompts import read_scenes
    from vidsparse.report import clips_in

    files = [out / "results.json", report, Path(json) if json not in (None, "-") else None]
    for path in files:
        if path is not None:
            check_file_name(path)
    floors.check_floor(floor)
    shared = common.shared_request(
        density, preset, dense_steps, dense_layers, impl, precision, force=force
    )
    requests = sparse_requests(method, shared)
    _check_once([request.label for request in requests])
    shared.check_device(pick_device(device))
    scenes = read_scenes(prompt or [DEFAULT_PROMPT] * (prompts is None), prompts, seed, seeds)
    asked = Sampling(height, width, num_frames, steps, guidance)
    quiet = json == "-"
    pipe, sampling = load_for_sampling(model, grid, asked, device, dtype, quiet=quiet)
    note_unknown_words(model, [scene.prompt for scene in scenes])
    everyone = _contenders(pipe, requests)
    other = floors.floor_contender(floor, model, pipe, device, quiet=quiet)
    meta = _meta(pipe, model, sampling, fps)
    made = _make(
        model,
        everyone,
        other,
        scenes,
        sampling,
        clips_in(out, fps),
        meta,
        fresh=fresh,
        quiet=quiet,
    )
    if maps:
        _record_maps(made, everyone[1:], scenes[0], sampling, out, fresh=fresh, quiet=quiet)
    _deliver(made, meta, out, json, report)


def _check_once(labels: list[str]) -> None:
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UsageError(f"--method {twice} is given twice; give each method once")


def _contenders(pipe: Any, requests: "list[SparseRequest]") -> "list[Contender]":
    from vidsparse.compare import Contender

    sparse = [Contender(request.label, pipe, request) for request in requests]
    return [Contender("dense", pipe), *sparse]


def _make(
    model: str,
    everyone: "list[Contender]",
    floor: "Contender | None",
    scenes: "list[Scene]",
    sampling: "Sampling",
    clips: "FolderClips",
    meta: dict[str, Any],
    *,
    fresh: bool,
    quiet: bool,
) -> "Comparison":
    """Make what is missing, dense first; an interrupt says what is kept."""
    from vidsparse.clips import Forgetful
    from vidsparse.compare import Judges, compare
    from vidsparse.quality import load_lpips

    dense, contenders = everyone[0], everyone[1:]
    device = dense.pipe.device
    alex, vgg = (load_lpips(device, net=net) for net in ("alex", "vgg"))
    judges = Judges(alex, vgg, content=_can_judge(model, scenes), device=device)
    try:
        with clip_progress(quiet=quiet) as tell:
            return compare(
                dense,
                contenders,
                scenes,
                sampling,
                judges,
                floor=floor,
                clips=Forgetful(clips) if fresh else clips,
                settings=_settings(meta, dense.pipe),
                on_progress=tell,
            )
    except KeyboardInterrupt:
        again = "the same command without --fresh" if fresh else "the same command"
        common.note(f"finished clips are kept in {clips.folder}; {again} goes on")
        raise


def _settings(meta: dict[str, Any], pipe: Any) -> dict[str, Any]:
    """Return what decides a clip and its time besides the method: clips differ where it does."""
    from vidsparse.fingerprint import model_of

    names = ("model", "dtype", "sampling", "device", "torch")
    return {
        **{name: meta[name] for name in names},
        "commit": (meta["commit"] or "").removesuffix("+changes"),
        "versions": {name: meta["versions"].get(name) for name in _DECIDING},
        "fingerprint": model_of(pipe).model_dump(),
    }


def _can_judge(model: str, scenes: "list[Scene]") -> bool:
    """Say whether every prompt is a sentence whose truth can be checked in the video."""
    from vidsparse.loading import is_bundled
    from vidsparse.models.grammar import parse_caption

    try:
        return is_bundled(model) and all(parse_caption(scene.prompt) for scene in scenes)
    except ValueError:
        return False


def _meta(pipe: Any, model: str, sampling: "Sampling", fps: float) -> dict[str, Any]:
    from vidsparse.profiling.environment import run_meta

    dtype = str(pipe.transformer.dtype).removeprefix("torch.")
    return {
        "model": model,
        "dtype": dtype,
        "sampling": sampling.arguments(),
        "fps": fps,
        **run_meta(pipe.device),
    }


def _record_maps(
    made: "Comparison",
    contenders: "list[Contender]",
    scene: "Scene",
    sampling: "Sampling",
    out: Path,
    *,
    fresh: bool,
    quiet: bool,
) -> None:
    """Generate a clip once more per method, watched; its maps of an earlier run are kept."""
    from vidsparse.report import maps_file, write_json
    from vidsparse.watched_sites import watch_sites

    for record, contender in zip(made.contenders, contenders, strict=True):
        file = maps_file(out, record.key, scene)
        calls = record.clips[0].calls
        known = file.is_file() and not fresh
        if contender.request is None or known or not calls or not calls["sparse_calls"]:
            continue
        with common.waiting(f"recording maps of {record.label}", quiet=quiet):
            found = watch_sites(
                contender.pipe, contender.request, scene.prompt, sampling, seed=scene.seed
            )
        write_json(file, found)


def _deliver(
    made: "Comparison", meta: dict[str, Any], out: Path, json: str | None, report: Path | None
) -> None:
    from vidsparse import report as pages

    found = pages.document(made, meta)
    written = [pages.write_results(out, found)]
    results = pages.Results(out, found)
    written += pages.write_pictures(results)
    if report is not None:
        pages.write_report(report, results)
        written.append(report)
    if json == "-":
        common.print_json(found)
        return
    if json is not None:
        pages.write_json(Path(json), found)
        written.append(Path(json))
    from rich.console import Console

    Console().print(pages.table(found))
    for line in pages.notes(found):
        typer.echo(line)
    typer.echo("wrote " + ", ".join(map(str, written)))
