"""``vidsparse tune``: from a quality target to a preset."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse import cli_common as common
from vidsparse.errors import UsageError

if TYPE_CHECKING:
    from vidsparse.clips import Scene
    from vidsparse.config import SparseConfig
    from vidsparse.generate import Sampling
    from vidsparse.tuning.lab import PipelineLab
    from vidsparse.tuning.report import TuneReport
    from vidsparse.tuning.settings import TuneSettings
    from vidsparse.tuning.target import Target

_PRESET = "preset.toml"


def tune(
    min_psnr: Annotated[
        float | None, typer.Option(help="Least mean PSNR against dense, dB.")
    ] = None,
    min_ssim: Annotated[float | None, typer.Option(help="Least mean SSIM.")] = None,
    max_lpips: Annotated[float | None, typer.Option(help="Greatest mean LPIPS.")] = None,
    max_time: Annotated[
        float | None,
        typer.Option(help="Minutes; only held-out clips of the best are begun after them."),
    ] = None,
    model: common.Model = "tiny",
    method: Annotated[
        list[str] | None, typer.Option(help="Only these methods; repeatable. Default: all.")
    ] = None,
    caches: Annotated[
        bool, typer.Option("--caches/--no-caches", help="Also try diffusers' step caches.")
    ] = True,
    eight_bit: Annotated[
        bool, typer.Option("--8bit", help="Also try the best sparse settings in 8 bits.")
    ] = False,
    keep: Annotated[int, typer.Option(min=1, help="Methods generated with, best first.")] = 3,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one prompt a line, # a comment; built-in if not.")
    ] = None,
    clips: Annotated[int, typer.Option(help="Clips to tune on.")] = 2,
    held_out: Annotated[int, typer.Option(help="Other clips to validate on.")] = 4,
    defaults: Annotated[
        bool,
        typer.Option("--defaults", help="Also run every method's defaults at the same time."),
    ] = False,
    floor: Annotated[
        str, typer.Option(help="Dense against dense: auto, precision, backend, none.")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps and predict what tuning costs.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for preset, table and journal.")] = Path(
        "out/tune"
    ),
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
    """Find the fastest settings that reach a quality; write them as a preset.

    Run again after an interruption, it goes on where it stopped.
    """
    from vidsparse.cli_generate import load_for_sampling
    from vidsparse.files import check_file_name
    from vidsparse.floors import check_floor
    from vidsparse.generate import Sampling
    from vidsparse.tuning.prompts import scenes_for
    from vidsparse.tuning.target import Target

    target = Target(min_psnr, min_ssim, max_lpips)
    check_floor(floor)
    if max_time is not None and not 0 < max_time < math.inf:
        raise UsageError(f"--max-time {max_time} must be a finite number of minutes above 0")
    for name in (_PRESET, "tune.json"):
        check_file_name(out / name)
    tuning, validation = scenes_for(model, prompts, tuning=clips, held_out=held_out, seed=seed)
    _check_methods(method)
    asked = Sampling(height, width, num_frames, steps, guidance)
    pipe, sampling = load_for_sampling(model, grid, asked, device, dtype, quiet=json)
    if sampling.steps is None:
        raise UsageError("--steps is needed for this model: tuning must know the number of steps")
    lab = _lab(pipe, sampling, target, model, device, floor, out, quiet=json)
    request = _Request(
        target, tuning, validation, method, caches, eight_bit, keep, defaults, max_time
    )
    if dry_run:
        _predict_cost(lab, request, json=json)
        return
    made = _run(lab, request, model, out, quiet=json)
    _deliver(made, lab, out, json=json)


@dataclass(frozen=True)
class _Request:
    """What the user asked for."""

    target: "Target"
    tuning: "tuple[Scene, ...]"
    held_out: "tuple[Scene, ...]"
    methods: list[str] | None
    caches: bool
    eight_bit: bool
    keep: int
    defaults: bool
    minutes: float | None


def _check_methods(names: list[str] | None) -> None:
    from vidsparse.methods.base import build_method

    for name in names or ():
        build_method(name, {})


def _lab(
    pipe: Any,
    sampling: "Sampling",
    target: "Target",
    model: str,
    device: str,
    floor: str,
    out: Path,
    *,
    quiet: bool,
) -> "PipelineLab":
    from vidsparse.floors import floor_contender
    from vidsparse.quality import load_lpips
    from vidsparse.tuning.lab import PipelineLab

    lpips = load_lpips(pipe.device)
    if target.max_lpips is not None and isinstance(lpips, str):
        raise UsageError(f"--max-lpips needs LPIPS, {lpips}")
    other = floor_contender(floor, model, pipe, device, quiet=quiet)
    lab = PipelineLab(pipe, sampling, lpips, folder=out)
    if other is not None:
        lab.floor_pipe, lab.floor_context = other.pipe, other.context
        lab.floor_name = other.label
    return lab


def _run(
    lab: "PipelineLab", request: _Request, model: str, out: Path, *, quiet: bool
) -> "TuneReport":
    from functools import partial

    from vidsparse.fingerprint import model_of
    from vidsparse.tuning.journal import Journal
    from vidsparse.tuning.report import facts_of, finish
    from vidsparse.tuning.settings import CACHES, TuneSettings
    from vidsparse.tuning.tune import Search

    say: Callable[[str], None] = (lambda line: None) if quiet else typer.echo
    caches = CACHES if request.caches else ()
    settings = TuneSettings(
        request.target,
        request.tuning,
        None if request.methods is None else tuple(request.methods),
        caches,
        request.keep,
        eight_bit=request.eight_bit,
        seconds=None if request.minutes is None else request.minutes * 60,
    )
    identity = model_of(lab.pipe)
    facts = facts_of(lab.pipe, lab.sampling)
    header = _header(lab, request, settings)
    header |= {"model": model, "fingerprint": identity.model_dump()}
    # The preset claims that what runs now measured it.
    header |= {"versions": facts["versions"], "commit": facts["commit"]}
    search = Search(lab, Journal(out, header), settings, say=say)
    search.run()
    return finish(
        search,
        request.held_out,
        identity,
        facts,
        defaults=request.defaults,
        on_preset=partial(_save_preset, out=out),
    )


def _header(lab: "PipelineLab", request: _Request, settings: "TuneSettings") -> dict[str, Any]:
    """Return what decides what results mean; a journal of other values is another search's."""
    from vidsparse.profiling.environment import device_name

    return {
        "target": asdict(request.target),
        "tuning": [asdict(scene) for scene in request.tuning],
        "held_out": [asdict(scene) for scene in request.held_out],
        "sampling": lab.sampling.arguments(),
        "methods": request.methods,
        "caches": list(settings.caches),
        "eight_bit": request.eight_bit,
        "keep": request.keep,
        "max_time": request.minutes,
        "device": device_name(lab.pipe.device),
        "dtype": str(lab.pipe.transformer.dtype),
    }


def _save_preset(preset: "SparseConfig", out: Path) -> None:
    preset.save(out / _PRESET)


def _predict_cost(lab: "PipelineLab", request: _Request, *, json: bool) -> None:
    from vidsparse.tuning.cost import predict_cost
    from vidsparse.tuning.settings import CACHES

    cost = predict_cost(
        lab,
        request.tuning,
        len(request.held_out),
        keep=request.keep,
        caches=len(CACHES) if request.caches else 0,
        methods=request.methods,
        steps=lab.sampling.steps or 1,
    )
    if json:
        common.print_json(cost.as_dict())
        return
    typer.echo(str(cost))


def _deliver(report: "TuneReport", lab: "PipelineLab", out: Path, *, json: bool) -> None:
    from vidsparse.profiling.environment import run_meta
    from vidsparse.report import write_json

    preset = out / _PRESET
    meta = {"sampling": lab.sampling.arguments(), **run_meta(lab.pipe.device)}
    document = {"meta": meta, **report.as_dict(), "preset": str(preset)}
    write_json(out / "tune.json", document)
    if json:
        common.print_json(document)
        return
    for line in report.lines():
        typer.echo(line)
    typer.echo(f"wrote {preset}, {out / 'tune.json'}")
