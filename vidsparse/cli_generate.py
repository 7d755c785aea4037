"""``vidsparse generate``, and loading for every command that samples."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse import cli_common as common
from vidsparse.errors import UsageError

if TYPE_CHECKING:
    from vidsparse.generate import Sampling
    from vidsparse.request import SparseRequest

DEFAULT_PROMPT = "a small red circle moves right over drifting green stripes"

# Options that a dense clip has no use for.
_OF_METHODS = ("density", "dense_steps", "dense_layers", "precision")


def generate(
    prompt: Annotated[str, typer.Option(help="What the video shows.")],
    out: Annotated[Path, typer.Option(help="Video to write: .mp4, or lossless .mkv.")],
    model: common.Model = "tiny",
    method: Annotated[
        str | None, typer.Option(help="Sparse method, or name:key=value:...; dense without.")
    ] = None,
    density: common.Density = None,
    preset: common.Preset = None,
    force: common.Force = False,
    dense_steps: common.DenseSteps = None,
    dense_layers: common.DenseLayers = None,
    impl: common.Impl = None,
    precision: common.Precision = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What it must not show.")] = None,
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
    json: common.JsonFlag = False,
) -> None:
    """Generate a video from a prompt, densely or sparsely."""
    from vidsparse.generate import Sampling, sample
    from vidsparse.loading import pick_device
    from vidsparse.prompts import check_prompt
    from vidsparse.video import check_video_name, write_video

    check_video_name(out)
    check_prompt(prompt)
    shared = common.shared_request(
        density, preset, dense_steps, dense_layers, impl, precision, force=force
    )
    request = _one_request(method, shared)
    shared.check_device(pick_device(device))
    asked = Sampling(height, width, num_frames, steps, guidance, negative_prompt)
    pipe, sampling = load_for_sampling(model, grid, asked, device, dtype, quiet=json)
    note_unknown_words(model, [prompt])
    handle = None if request is None else request.enable(pipe)
    with common.progress_bars(quiet=json) as bars:
        clip = sample(
            pipe, prompt, sampling, seed=seed, on_step=lambda i, n: bars("denoising", i, n)
        )
    write_video(out, clip.video, fps=fps)
    result: dict[str, Any] = {
        "out": str(out),
        "frames": clip.video.shape[0],
        "denoise_seconds": clip.denoise_seconds,
        "total_seconds": clip.total_seconds,
        "summary": None if handle is None else handle.summary().as_dict(),
    }
    if json:
        common.print_json(result)
        return
    if handle is not None:
        typer.echo(str(handle.summary()))
    typer.echo(
        f"{out}: {result['frames']} frames, denoising {clip.denoise_seconds:.1f} s, "
        f"in all {clip.total_seconds:.1f} s"
    )


def _one_request(method: str | None, shared: "SparseRequest") -> "SparseRequest | None":
    if method is None and shared.preset is None:
        for name in _OF_METHODS:
            if (value := getattr(shared, name)) is not None:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {value} needs --method or --preset")
        return None
    return sparse_requests([method] if method else None, shared)[0]


def sparse_requests(names: list[str] | None, shared: "SparseRequest") -> "list[SparseRequest]":
    """Return one checked request per method; svg when nothing is asked for."""
    from vidsparse.request import parse_method

    if names is None and shared.preset is not None:
        requests = [shared]
    else:
        requests = [parse_method(name, shared) for name in names or ["svg"]]
        if shared.density is not None and all(one.method == "dense" for one in requests):
            raise UsageError(
                f"--density {shared.density} has no effect on method 'dense'; leave it out"
            )
    for request in requests:
        request.check()
    return requests


def load_for_sampling(
    model: str, grid: str | None, asked: "Sampling", device: str, dtype: str, *, quiet: bool
) -> "tuple[Any, Sampling]":
    """Load the pipeline and settle its sampling options; everything is checked first."""
    from vidsparse.generate import check_sampling, settle_sampling
    from vidsparse.loading import load_pipeline, pick_device, pick_dtype

    where = pick_device(device)
    precision = pick_dtype(dtype, where)
    sampling = settle_sampling(model, grid, asked)
    with common.waiting(f"loading {model}", quiet=quiet):
        common.quiet_libraries()
        pipe = load_pipeline(model, device=where, dtype=precision)
    check_sampling(pipe, sampling)
    _note_untrained_size(model, sampling)
    return pipe, sampling


def _note_untrained_size(model: str, sampling: "Sampling") -> None:
    from vidsparse.loading import is_bundled
    from vidsparse.models import grid_warning

    size = (sampling.height or 0, sampling.width or 0, sampling.num_frames or 0)
    if is_bundled(model) and (warning := grid_warning(model, *size)):
        common.note(warning)


def note_unknown_words(model: str, prompts: list[str]) -> None:
    """Say when a bundled model, whose vocabulary is small, knows no word of a prompt."""
    from vidsparse.loading import is_bundled
    from vidsparse.models import caption_warning

    for prompt in dict.fromkeys(prompts) if is_bundled(model) else ():
        if warning := caption_warning(model, prompt):
            common.note(warning)
