"""``vidsparse preset``: show, check, copy and share presets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse import cli_common as common
from vidsparse.errors import UsageError

if TYPE_CHECKING:
    from vidsparse.config import SparseConfig

preset = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Show, check, copy and share presets."
)

Name = Annotated[str, typer.Argument(metavar="PRESET", help="File, or name of a bundled preset.")]
HubFile = Annotated[str, typer.Option(help="File in the repository.")]


@preset.command("list")
def list_presets(json: common.JsonFlag = False) -> None:
    """List the bundled presets."""
    from vidsparse.config import SparseConfig, preset_names
    from vidsparse.preset_parts import STATUS_TEXT

    configs = {name: SparseConfig.load(name) for name in preset_names()}
    if json:
        common.print_json({name: config.as_dict() for name, config in configs.items()})
        return
    width = max(map(len, configs))
    for name, config in configs.items():
        typer.echo(f"{name:<{width}}  {config.method:<6}  {STATUS_TEXT[config.status]}")


@preset.command()
def show(name: Name, json: common.JsonFlag = False) -> None:
    """Print a preset: settings, model, and what was measured."""
    from vidsparse.config import SparseConfig
    from vidsparse.preset_files import to_toml
    from vidsparse.preset_parts import STATUS_TEXT

    config = SparseConfig.load(name)
    if json:
        common.print_json(config.as_dict())
        return
    typer.echo(f"# {STATUS_TEXT[config.status]}")
    typer.echo(to_toml(config.as_dict()), nl=False)


@preset.command()
def validate(
    name: Name,
    model: Annotated[
        str | None, typer.Option(help="Also check that the preset is for this model.")
    ] = None,
) -> None:
    """Check keys, types, ranges and, with --model, the model; silent errors are impossible."""
    from vidsparse.config import SparseConfig

    config = SparseConfig.load(name)
    method, _ = config.build()
    if config.cache is not None:
        _check_cache(config)
    if model is not None:
        _check_model(config, model)
    typer.echo(f"{name}: valid, method {method.name if not config.bands else config.method}")


def _check_cache(config: "SparseConfig") -> None:
    from vidsparse.pipelines.step_cache import check_kind

    if config.cache is not None:
        check_kind(config.cache.name, config.cache.parameters)


def _check_model(config: "SparseConfig", model: str) -> None:
    from vidsparse.fingerprint import check_model
    from vidsparse.loading import load_pipeline, pick_device, pick_dtype

    if config.model is None:
        raise UsageError("the preset does not say for which model it is")
    device = pick_device("cpu")
    common.quiet_libraries()
    check_model(config.model, load_pipeline(model, device=device, dtype=pick_dtype("auto", device)))


@preset.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option(help="File to write, .toml or .json.")],
) -> None:
    """Copy a preset to a file, for editing or in the other format."""
    from vidsparse.config import SparseConfig

    SparseConfig.load(name).save(out)
    typer.echo(f"wrote {out}")


@preset.command()
def measure(
    name: Name,
    model: common.Model = "tiny",
    force: common.Force = False,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one prompt a line, # a comment; built-in if not.")
    ] = None,
    clips: Annotated[
        int | None,
        typer.Option(help="Clips, each with a prompt of its own; all of --prompts, or 4."),
    ] = None,
    grid: common.Grid = None,
    height: common.Height = None,
    width: common.Width = None,
    num_frames: common.NumFrames = None,
    steps: common.Steps = None,
    guidance: common.Guidance = None,
    seed: common.Seed = 1000,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    json: common.JsonFlag = False,
) -> None:
    """Generate with a preset and densely: does it hold at this size and number of steps?"""
    from vidsparse.cli_generate import load_for_sampling
    from vidsparse.config import SparseConfig
    from vidsparse.fingerprint import check_model
    from vidsparse.generate import Sampling
    from vidsparse.quality import load_lpips
    from vidsparse.tuning.lab import PipelineLab
    from vidsparse.tuning.measure import measure_preset
    from vidsparse.tuning.prompts import scenes_to_measure

    config = SparseConfig.load(name)
    config.build()
    scenes = scenes_to_measure(model, prompts, clips=clips, seed=seed)
    asked = Sampling(height, width, num_frames, steps, guidance)
    pipe, sampling = load_for_sampling(model, grid, asked, device, dtype, quiet=json)
    if config.model is not None and not force:
        check_model(config.model, pipe)
    lpips = load_lpips(pipe.device)
    if isinstance(lpips, str) and config.measured and "max_lpips" in config.measured.target:
        raise UsageError(f"max_lpips, the target of {name}, needs LPIPS, which is {lpips}")
    lab = PipelineLab(pipe, sampling, lpips)
    found = measure_preset(lab, config.model_copy(update={"model": None}), scenes, label=name)
    if json:
        common.print_json({"sampling": sampling.arguments(), **found.as_dict()})
        return
    typer.echo(found.line())


@preset.command()
def schema() -> None:
    """Print the JSON schema of preset files."""
    common.print_json(json_schema())


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of preset files, for editors and other tools."""
    from vidsparse.config import SparseConfig

    made = SparseConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


@preset.command()
def pull(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub.")],
    out: Annotated[Path, typer.Option(help="File to write, .toml or .json.")],
    file: HubFile = "vidsparse.toml",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Fetch a preset from a Hugging Face repository and check it."""
    from vidsparse.preset_hub import pull as fetch

    with common.waiting(f"asking the Hub for {repo}", quiet=False):
        done = fetch(repo, out, file=file, revision=revision)
    typer.echo(f"wrote {done}")


@preset.command()
def push(
    name: Name,
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Repository on the Hub.")],
    file: HubFile = "vidsparse.toml",
) -> None:
    """Publish a preset in a Hugging Face repository."""
    from vidsparse.preset_hub import push as publish

    typer.echo(publish(name, repo, file=file))
