"""``vidsparse calibrate``: LiteAttention's thresholds for a model, as a preset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse import cli_common as common
from vidsparse.cli_generate import DEFAULT_PROMPT, load_for_sampling, note_unknown_words
from vidsparse.errors import UsageError

if TYPE_CHECKING:
    from vidsparse.calibrate import Calibration
    from vidsparse.methods.lite import Lite


def calibrate(
    out: Annotated[Path, typer.Option(help="Preset to write (.toml or .json).")],
    method: Annotated[
        str, typer.Option(help="lite, or lite:key=value:... without thresholds.")
    ] = "lite",
    target_error: Annotated[
        float, typer.Option(help="Relative L1 error of each attention output against dense.")
    ] = 0.05,
    segments: Annotated[
        int, typer.Option(help="Equal parts of the steps with thresholds of their own.")
    ] = 3,
    dense_steps: common.DenseSteps = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What the videos show; repeatable.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one prompt a line; # starts a comment.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds per prompt, counted from --seed.")] = 1,
    model: common.Model = "tiny",
    grid: common.Grid = None,
    height: common.Height = None,
    width: common.Width = None,
    num_frames: common.NumFrames = None,
    steps: common.Steps = None,
    guidance: common.Guidance = None,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    json: common.JsonFlag = False,
) -> None:
    """Find LiteAttention's thresholds by layer and part of the steps; write them as a preset."""
    from vidsparse import calibrate as calibration
    from vidsparse.generate import Sampling
    from vidsparse.preset_files import check_preset_name
    from vidsparse.prompts import read_scenes
    from vidsparse.request import parse_count_or_share
    from vidsparse.schedule import DenseSchedule

    check_preset_name(out)
    dense = parse_count_or_share(dense_steps, "--dense-steps")
    dense = 0.2 if dense is None else dense
    lite = _lite(method)
    DenseSchedule(dense)
    calibration.check_aims(lite, target_error, segments)
    scenes = read_scenes(prompt or [DEFAULT_PROMPT] * (prompts is None), prompts, seed, seeds)
    asked = Sampling(height, width, num_frames, steps, guidance)
    pipe, sampling = load_for_sampling(model, grid, asked, device, dtype, quiet=json)
    note_unknown_words(model, [scene.prompt for scene in scenes])
    with common.progress_bars(quiet=json) as bars:
        found = calibration.calibrate(
            pipe,
            scenes,
            sampling,
            lite=lite,
            target_error=target_error,
            segments=segments,
            dense_steps=dense,
            on_progress=bars,
        )
    found.preset(pipe, lite, dense).save(out)
    _deliver(found, out, json)


def _lite(text: str) -> "Lite":
    from vidsparse.methods.base import build_method
    from vidsparse.methods.lite import Lite
    from vidsparse.request import SparseRequest, parse_method

    request = parse_method(text, SparseRequest(label="", method=None))
    method = build_method(request.method or "lite", request.parameters)
    if not isinstance(method, Lite):
        raise UsageError(f"--method {text}: only lite has thresholds to calibrate")
    return method


def _deliver(found: "Calibration", out: Path, json: bool) -> None:
    rows: list[dict[str, Any]] = [vars(choice) for choice in found.choices]
    if json:
        common.print_json({"preset": str(out), "density": found.density(), "choices": rows})
        return
    for row in rows:
        typer.echo(
            f"{row['transformer']} layer {row['layer']:>2} part {row['segment'] + 1}: "
            f"threshold {row['threshold']:g}, error {row['error']:.4f}, "
            f"density {row['density']:.3f}"
        )
    typer.echo(f"{out}: kept on average {found.density():.3f} of the pairs where it skipped")
