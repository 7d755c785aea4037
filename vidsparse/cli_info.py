"""``vidsparse methods``, ``vidsparse models`` and ``vidsparse doctor``."""

from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse import cli_common as common
from vidsparse.errors import UsageError

if TYPE_CHECKING:
    from vidsparse.methods.base import SparseMethod
    from vidsparse.models.check import CheckSettings


def methods(json: common.JsonFlag = False) -> None:
    """List the sparse methods, their parameters, and the presets."""
    from vidsparse.config import preset_names
    from vidsparse.methods.base import available_methods

    rows = [_method_row(method) for method in available_methods().values()]
    if json:
        common.print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['name']:<10} {row['summary']} ({row['source']})")
        settings = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
        typer.echo(f"{'':<10} {settings}")
    typer.echo(f"presets: {', '.join(preset_names()) or 'none'}")


def _method_row(method: "type[SparseMethod]") -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(method)}
    return {
        "name": method.name,
        "summary": method.summary,
        "source": method.source,
        "parameters": {
            name: value if _is_plain(value) else str(value)
            for name, value in defaults.items()
            if value is not MISSING
        },
    }


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def models(
    check: Annotated[
        str | None, typer.Option(help="Generate held-out captions with this model; score them.")
    ] = None,
    clips: Annotated[int, typer.Option(help="Captions for --check.")] = 64,
    seed: common.Seed = 0,
    grid: common.Grid = None,
    steps: common.Steps = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    json: common.JsonFlag = False,
) -> None:
    """List the bundled models and the supported transformers, or check what a model generates."""
    if check is not None:
        _check(check, clips, seed, grid, steps, device, dtype, json)
        return
    from vidsparse.pipelines.listing import transformer_rows

    bundled, transformers = _bundled_rows(), transformer_rows()
    if json:
        common.print_json([*bundled, *transformers])
        return
    for row in bundled:
        _echo_bundled(row)
    for row in transformers:
        _echo_transformer(row)


def _bundled_rows() -> list[dict[str, Any]]:
    from vidsparse.loading import has_weights
    from vidsparse.models import available

    wan = {
        "family": "wan",
        "transformer": "WanTransformer3DModel",
        "pipelines": ["WanPipeline"],
        "status": "bundled",
    }
    return [
        {**wan, **asdict(card), "weights": "here" if has_weights(card.name) else "missing"}
        for card in available()
    ]


def _echo_bundled(row: dict[str, Any]) -> None:
    typer.echo(
        f"{row['name']}: {row['description']}; {row['steps']} steps, "
        f"guidance {row['guidance']}, {row['licence']}, weights {row['weights']}"
    )
    for name, size in row["grids"].items():
        typer.echo(
            f"  --grid {name}: {size['width']}x{size['height']}, "
            f"{size['num_frames']} frames, {size['tokens']} video tokens"
        )


def _echo_transformer(row: dict[str, Any]) -> None:
    typer.echo(f"{row['family']}: {row['transformer']}, {row['status']}")
    typer.echo(f"  {', '.join(row['pipelines'])}")
    if "why" in row:
        typer.echo(f"  {row['why']}")
        return
    typer.echo(f"  sparse: {row['sparsified']}; text: {row['text']}")
    sizes = ", ".join(map(str, row["head_sizes"]))
    typer.echo(f"  head sizes {sizes}; preset {row['preset'] or 'none'}")
    typer.echo(f"  tested in {row['evidence']['sparse']}")
    for run in row["evidence"]["gpu"]:
        typer.echo(f"  {_gpu_line(run)}")
    if not row["evidence"]["gpu"]:
        typer.echo("  not run on a GPU")


def _gpu_line(run: dict[str, Any]) -> str:
    dense = "equals" if run["dense_equal"] else "differs from"
    sparse = "finite" if run["sparse_finite"] else "not finite"
    return (
        f"on {run['device']}, {run['pipeline']}: {run['heads']} heads, {run['tokens']} tokens, "
        f"D {run['head_size']}; density 1 {dense} dense, density {run['density']:.2f} is {sparse}"
    )


def _check(
    model: str,
    clips: int,
    seed: int,
    grid: str | None,
    steps: int | None,
    device: str,
    dtype: str,
    json: bool,
) -> None:
    from vidsparse.loading import bundled_names, is_bundled, pick_device
    from vidsparse.models.check import check_model

    if not is_bundled(model):
        known = ", ".join(bundled_names())
        raise UsageError(f"--check {model!r} is no bundled model; choose one of: {known}")
    if clips < 1:
        raise UsageError(f"--clips {clips} must be at least 1")
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps} must be at least 1")
    settings = _check_settings(model, clips, seed, grid, steps, device)
    with common.waiting(f"loading {model}", quiet=json):
        pipe, other = _two_precisions(model, pick_device(device), dtype)
    with common.progress_bars(quiet=json) as bars:
        scores = check_model(
            pipe,
            settings,
            floor_pipe=other,
            progress=lambda done, total: bars("clips", done, total),
        )
    if json:
        common.print_json({**scores, **_check_meta(model, pipe, other, settings)})
        return
    for name, value in scores.items():
        typer.echo(f"{name:<10} {value:.3f}" if isinstance(value, float) else f"{name:<10} {value}")
    typer.echo(f"floor_psnr is dense {_dtype(other)} against dense {_dtype(pipe)} in dB")


def _check_settings(
    model: str, clips: int, seed: int, grid: str | None, steps: int | None, device: str
) -> "CheckSettings":
    from vidsparse.generate import Sampling, settle_sampling
    from vidsparse.loading import pick_device
    from vidsparse.models import info
    from vidsparse.models.check import CheckSettings, batch_for

    asked = settle_sampling(model, grid, Sampling(steps=steps))
    size = info(model).grids[grid or next(iter(info(model).grids))]
    return CheckSettings(
        clips=clips,
        seed=seed,
        height=size.height,
        width=size.width,
        num_frames=size.num_frames,
        steps=info(model).steps if asked.steps is None else asked.steps,
        guidance=info(model).guidance,
        batch=min(clips, batch_for(pick_device(device), size.tokens)),
    )


def _two_precisions(model: str, device: Any, dtype: str) -> tuple[Any, Any]:
    """Load the model as asked, and in the precision that says what rounding alone changes."""
    import torch

    from vidsparse.loading import load_pipeline, pick_dtype

    common.quiet_libraries()
    asked = pick_dtype(dtype, device)
    other = torch.bfloat16 if asked == torch.float32 else torch.float32
    return tuple(load_pipeline(model, device=device, dtype=one) for one in (asked, other))


def _check_meta(model: str, pipe: Any, other: Any, settings: "CheckSettings") -> dict[str, Any]:
    from vidsparse.profiling.environment import run_meta

    dtypes = {"dtype": _dtype(pipe), "floor_dtype": _dtype(other)}
    return {"model": model, **dtypes, "settings": asdict(settings), "meta": run_meta(pipe.device)}


def _dtype(pipe: Any) -> str:
    return str(pipe.transformer.dtype).removeprefix("torch.")


def doctor(json: common.JsonFlag = False) -> None:
    """Print versions, devices and which kernels run here."""
    from vidsparse.profiling.doctor import diagnose

    with common.waiting("looking around", quiet=json):
        found = diagnose()
    if json:
        common.print_json(found)
        return
    typer.echo(f"python {found['python']}, {found['platform']}")
    for name, version in found["versions"].items():
        typer.echo(f"  {name:<24} {version or 'not installed'}")
    for row in found["devices"]:
        typer.echo("device " + ", ".join(f"{key} {value}" for key, value in row.items()))
    for row in found["kernels"]:
        why = "; ".join(row["why_not"])
        verdict = "runs" if row["runs"] else f"does not run: {why}"
        typer.echo(f"kernel {row['impl']:<10} on {row['device']}: {verdict}")
    typer.echo(f"pipelines: {', '.join(found['pipelines'])}")
    for name, state in found["parts"].items():
        typer.echo(f"{name}: {state}")
