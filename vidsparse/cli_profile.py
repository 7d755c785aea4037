"""``vidsparse profile``: where a model's time goes, and what a method does inside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse import cli_common as common
from vidsparse.cli_generate import DEFAULT_PROMPT, load_for_sampling
from vidsparse.errors import UsageError

if TYPE_CHECKING:
    from vidsparse.generate import Sampling
    from vidsparse.methods.svg import WatchedSVG
    from vidsparse.request import SparseRequest
    from vidsparse.watched_maps import WatchedMaps


def profile(
    heads: Annotated[
        bool, typer.Option("--heads", help="Draw which heads SVG finds spatial and temporal.")
    ] = False,
    maps: Annotated[
        bool, typer.Option("--maps", help="Draw what a method estimates, keeps, and the truth.")
    ] = False,
    method: Annotated[
        str | None, typer.Option(help="With --maps: method, or name:key=value:...; draft if not.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="With --maps; the middle one if not.")] = None,
    step: Annotated[
        int | None, typer.Option(help="With --maps; the first of the second half if not.")
    ] = None,
    head: Annotated[
        list[int] | None, typer.Option(help="With --maps, repeatable; four if not.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture to write (PNG); out/profile.png and the like.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the video shows.")] = None,
    density: common.Density = None,
    dense_steps: common.DenseSteps = None,
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
    """Generate once, and report what sparsity could save; or draw what a method decided.

    Without --heads or --maps: attention's share of the time, the greatest speed-up per density,
    from how many tokens on methods win, and how much attention mass the best blocks hold.
    """
    if heads and maps:
        raise UsageError("say what to draw, one of: --heads, --maps")
    if not maps and any(x is not None for x in (method, layer, step, head)):
        raise UsageError("--method, --layer, --step and --head belong to --maps")
    kind = "heads" if heads else "maps" if maps else "profile"
    picture = _checked_picture(out or Path("out") / f"{kind}.png")
    from vidsparse.generate import Sampling

    if kind == "profile":
        if density is not None or dense_steps is not None:
            raise UsageError("--density and --dense-steps belong to --heads or --maps")
        asked = Sampling(height, width, num_frames, steps, guidance)
        pipe, sampling = load_for_sampling(model, grid, asked, device, dtype, quiet=json)
        _profile_model(pipe, prompt, sampling, seed, picture, json=json)
        return
    request = _request("svg" if heads else method or "draft", density, dense_steps)
    watched: Any = _watched_svg(request) if heads else _watched_maps(request, layer, step, head)
    asked = Sampling(height, width, num_frames, steps, guidance)
    pipe, sampling = load_for_sampling(model, grid, asked, device, dtype, quiet=json)
    _generate(pipe, watched, request, prompt, sampling, seed, quiet=json)
    (_deliver_heads if heads else _deliver_maps)(watched, picture, json)


def _profile_model(
    pipe: Any, prompt: str | None, sampling: "Sampling", seed: int, picture: Path, *, json: bool
) -> None:
    from vidsparse.profiling.environment import run_meta
    from vidsparse.profiling.model_profile import profile_model
    from vidsparse.profiling.profile_figure import draw_profile
    from vidsparse.report import write_json

    with common.progress_bars(quiet=json) as bars:
        found = profile_model(
            pipe,
            prompt or DEFAULT_PROMPT,
            sampling,
            seed=seed,
            on_step=lambda done, total: bars("denoising", done, total),
        )
    _save(draw_profile(found), picture)
    document = {
        "meta": {"sampling": sampling.arguments(), **run_meta(pipe.device)},
        **found.as_dict(),
    }
    write_json(picture.with_suffix(".json"), document)
    if json:
        common.print_json(document)
        return
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"wrote {picture}, {picture.with_suffix('.json')}")


def _checked_picture(path: Path) -> Path:
    from vidsparse.files import check_file_name

    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} does not end in .png, the only format written; rename it")
    check_file_name(path)
    return path


def _request(method: str, density: float | None, dense_steps: str | None) -> "SparseRequest":
    from vidsparse.request import parse_method

    request = parse_method(method, common.shared_request(density, None, dense_steps, None, None))
    request.check()
    return request


def _watched_svg(request: "SparseRequest") -> "WatchedSVG":
    from vidsparse.methods.svg import WatchedSVG

    return WatchedSVG() if request.density is None else WatchedSVG(request.density)


def _watched_maps(
    request: "SparseRequest", layer: int | None, step: int | None, heads: list[int] | None
) -> "WatchedMaps":
    from vidsparse.methods.base import build_method
    from vidsparse.watched_maps import WatchedMaps

    given = {} if request.density is None else {"density": request.density}
    inner = build_method(request.method or "draft", {**request.parameters, **given})
    chosen = None if heads is None else tuple(sorted(set(heads)))
    return WatchedMaps(inner.density, inner=inner, layer=layer, step=step, heads=chosen)


def _generate(
    pipe: Any,
    watched: Any,
    request: "SparseRequest",
    prompt: str | None,
    sampling: "Sampling",
    seed: int,
    *,
    quiet: bool,
) -> None:
    import vidsparse
    from vidsparse.generate import sample

    dense_steps, dense_layers = request.dense_steps, request.dense_layers
    with (
        vidsparse.enabled(pipe, watched, dense_steps=dense_steps, dense_layers=dense_layers),
        common.progress_bars(quiet=quiet) as bars,
    ):
        sample(
            pipe,
            prompt or DEFAULT_PROMPT,
            sampling,
            seed=seed,
            on_step=lambda done, total: bars("denoising", done, total),
        )


def _deliver_heads(watched: "WatchedSVG", out: Path, json: bool) -> None:
    from vidsparse.heads import draw_head_types, head_types

    found = head_types(watched)
    if not found:
        raise UsageError(
            "no call was sparse, so no head was profiled; lower --dense-steps or use a larger grid"
        )
    _save(draw_head_types(found), out)
    rows = [types.as_dict() for types in found]
    if json:
        common.print_json({"picture": str(out), "density": watched.density, "transformers": rows})
        return
    for row in rows:
        typer.echo(f"{row['transformer']}: {row['temporal_share']:.1%} of head decisions temporal")
    typer.echo(f"wrote {out}")


def _deliver_maps(watched: "WatchedMaps", out: Path, json: bool) -> None:
    from vidsparse.maps import draw_maps

    if not watched.found:
        raise UsageError(
            "the call asked for was not sparse, so there is nothing to draw; choose a later "
            "--step, lower --dense-steps or use a larger grid"
        )
    maps = watched.found[0]
    _save(draw_maps(maps), out)
    values = maps.as_dict()
    if json:
        common.print_json({"picture": str(out), **values})
        return
    typer.echo(f"{maps.method}, {maps.site}")
    for row in values["heads"]:
        typer.echo(
            f"  head {row['head']}: density {row['density']:.3f}, recall {row['recall']:.3f}, "
            f"oracle {row['oracle_recall']:.3f}, in natural order "
            f"{row['raster_oracle_recall']:.3f}"
        )
    typer.echo(f"wrote {out}")


def _save(figure: Any, out: Path) -> None:
    from vidsparse.files import replacing

    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150)
