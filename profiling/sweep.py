"""Measure quality against density: PSNR on decoded frames and recall of the attention map.

``python -m vidsparse.profiling.sweep --methods svg,draft,svg2,random,oracle --densities .5,.3,.2``
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from vidsparse.api import enabled
from vidsparse.errors import UsageError, VidsparseError
from vidsparse.generate import Sampling, check_sampling, settle_sampling
from vidsparse.loading import load_pipeline, pick_device, pick_dtype
from vidsparse.methods.base import SparseMethod
from vidsparse.models.grammar import (
    BACKGROUND_COLOURS,
    COLOURS,
    DIRECTIONS,
    PATTERNS,
    SHAPES,
    Caption,
    ObjectCaption,
)
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.method_spec import parse_method, split_methods
from vidsparse.profiling.rows import Row, RowFile, module_command, print_error
from vidsparse.profiling.sites import Capture, RecallJudge
from vidsparse.prompts import read_prompts
from vidsparse.quality import PSNR_OF_EQUAL_FRAMES, mean_psnr, psnr_per_frame


@dataclass(frozen=True)
class SweepSettings:
    """What all points of a sweep share.

    Attributes:
        prompts: one per clip.
        seeds: of each clip's initial noise.
        sampling: size, frames, steps, guidance; steps must be given.
        dense_steps: share of the first steps that stay dense for every method.
        clips_at_once: clips per pipeline call; more use a GPU better.
        grid: name for the rows.
        model: alike.

    Raises:
        UsageError: prompts and seeds differ in number, or steps are missing.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    sampling: Sampling
    dense_steps: float = 0.2
    clips_at_once: int = 1
    grid: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.seeds) or not self.prompts:
            raise UsageError(
                f"{len(self.prompts)} prompts and {len(self.seeds)} seeds; give one of each per "
                "clip, at least one clip"
            )
        if self.sampling.steps is None:
            raise UsageError("a sweep needs sampling.steps; give the number of denoising steps")


def quality_sweep(
    pipe: Any,
    methods: Sequence[str],
    densities: Sequence[float],
    settings: SweepSettings,
    *,
    floor_pipe: Any = None,
    with_recall: bool = True,
    on_row: Callable[[Row], None] = lambda row: None,
    on_skip: Callable[[str], None] = lambda reason: None,
    deadline: float = math.inf,
) -> list[Row]:
    """Compare methods with dense attention on the same clips.

    Args:
        pipe: a diffusers text-to-video pipeline.
        methods: names, or ``name:field=value:...`` with parameters.
        densities: requested densities, each below 1; all methods run at one before the next.
        settings: clips and sampling.
        floor_pipe: the same model in another precision; its dense clips give ``floor_psnr``.
        with_recall: measure how much attention mass the plans keep.
        on_row: called with each row as soon as it is there.
        on_skip: called with the reason when a method cannot run here at a density.
        deadline: ``time.monotonic()`` after which no further point is begun.

    Returns:
        Rows ``{method, model, dtype, grid, size, num_steps, dense_steps, tokens, density,
        requested_density, compensate, recall, oracle_recall, psnr, psnr_per_clip, floor_psnr,
        clips, seconds}``: ``size`` is width, height and frames, ``density`` the mean over the
        sparse calls, recalls are means over sampled queries at a few layers and steps of the
        dense run, PSNR in dB is a mean over frames, then clips.

    Raises:
        UsageError: a method or parameter is unknown or out of range.
    """
    planned = [(d, spec, parse_method(spec, d)) for d in densities for spec in methods]
    first_step = math.floor(settings.dense_steps * (settings.sampling.steps or 1) + 1e-9)
    capture = Capture(density=0.5, first_step=first_step)
    with enabled(pipe, capture, dense_steps=0):
        reference = generate(pipe, settings)
    floor = None
    if floor_pipe is not None:
        floor = fmean(_clip_psnrs(generate(floor_pipe, settings), reference))
    judge = RecallJudge(capture.found if with_recall else [])
    rows = []
    for density, spec, method in planned:
        if time.monotonic() > deadline:
            break
        try:
            row = _point(pipe, method, spec, density, settings, reference, judge)
        except UsageError as error:
            on_skip(f"{spec} at density {density}: {error}")
            continue
        row["floor_psnr"] = None if floor is None else round(floor, 2)
        on_row(row)
        rows.append(row)
    return rows


def generate(pipe: Any, settings: SweepSettings) -> list[Tensor]:
    """Return the clips, each (F, 3, H, W) float32 in [0, 1] on the CPU."""
    videos: list[Tensor] = []
    options = {**settings.sampling.arguments(), "output_type": "pt"}
    pairs = list(zip(settings.prompts, settings.seeds, strict=True))
    for start in range(0, len(pairs), settings.clips_at_once):
        part = pairs[start : start + settings.clips_at_once]
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in part]
        with torch.no_grad():
            frames = pipe(prompt=[p for p, _ in part], generator=generators, **options).frames
        videos.extend(frames.detach().float().clamp(0, 1).cpu())
    return videos


def _point(
    pipe: Any,
    method: SparseMethod,
    spec: str,
    density: float,
    settings: SweepSettings,
    reference: list[Tensor],
    judge: RecallJudge,
) -> Row:
    start = time.monotonic()
    with enabled(pipe, method, dense_steps=settings.dense_steps, record_sites=False) as handle:
        psnrs = _clip_psnrs(generate(pipe, settings), reference)
        summary = handle.summary()
    return {
        "method": spec,
        **_place(pipe, settings),
        "tokens": judge.sites[0].layout.num_tokens if judge.sites else None,
        "density": _rounded(summary.density, 4),
        "requested_density": density,
        "compensate": method.compensate,
        "recall": _rounded(judge.of(method), 4),
        "oracle_recall": _rounded(judge.oracle(density), 4),
        "psnr": round(fmean(psnrs), 2),
        "psnr_per_clip": [round(value, 2) for value in psnrs],
        "clips": len(psnrs),
        "seconds": round(time.monotonic() - start, 1),
    }


def _place(pipe: Any, settings: SweepSettings) -> Row:
    """Return where points are measured: what tells rows of several sweeps in a file apart."""
    sampling = settings.sampling
    return {
        "model": settings.model,
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "grid": settings.grid,
        "size": [sampling.width, sampling.height, sampling.num_frames],
        "num_steps": sampling.steps,
        "dense_steps": settings.dense_steps,
    }


def _clip_psnrs(videos: list[Tensor], reference: list[Tensor]) -> list[float]:
    pairs = zip(videos, reference, strict=True)
    means = [mean_psnr(tuple(psnr_per_frame(video, other).tolist())) for video, other in pairs]
    return [min(value, PSNR_OF_EQUAL_FRAMES) for value in means]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def main(arguments: list[str] | None = None) -> int:
    """Run a sweep from the command line."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except VidsparseError as error:
        print_error(f"error: {error}")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.sweep")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--methods", default="svg,draft,svg2,random,oracle")
    parser.add_argument("--densities", default="0.5,0.3,0.2")
    parser.add_argument("--grid", help="one of the model's grids; its first by default")
    for size in ("--height", "--width", "--num-frames"):
        parser.add_argument(size, type=int, help="for models without grids")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--dense-steps", type=float, default=0.2)
    parser.add_argument("--prompts", type=Path, help="one prompt a line; # starts a comment")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clips-at-once", type=int, help="all on a GPU, 1 on a CPU by default")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no point after")
    parser.add_argument("--no-recall", action="store_true")
    parser.add_argument("--no-floor", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the rows --out already has")
    return parser


def _run(options: argparse.Namespace) -> None:
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    settings = _settings(options, device)
    pipe = load_pipeline(options.model, device=device, dtype=dtype)
    check_sampling(pipe, settings.sampling)
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    floor_pipe = None
    if not options.no_floor:
        floor_pipe = load_pipeline(options.model, device=device, dtype=other)
    quality_sweep(
        pipe,
        split_methods(options.methods),
        [float(text) for text in options.densities.split(",")],
        settings,
        floor_pipe=floor_pipe,
        with_recall=not options.no_recall,
        on_row=RowFile(
            options.out,
            run_meta(device, module_command("vidsparse.profiling.sweep")),
            append=options.append,
        ),
        on_skip=lambda reason: print_error(f"skipped: {reason}"),
        deadline=time.monotonic() + options.minutes * 60,
    )


def _settings(options: argparse.Namespace, device: torch.device) -> SweepSettings:
    asked = Sampling(options.height, options.width, options.num_frames, options.steps)
    sampling = settle_sampling(options.model, options.grid, asked)
    if options.prompts is not None:
        prompts = tuple(read_prompts(options.prompts))
    else:
        prompts = grammar_prompts(options.clips)
    if len(prompts) < options.clips:
        raise UsageError(
            f"{options.prompts} has {len(prompts)} different prompts; --clips {options.clips}"
        )
    return SweepSettings(
        prompts=prompts[: options.clips],
        seeds=tuple(range(options.clips)),
        sampling=sampling,
        dense_steps=options.dense_steps,
        clips_at_once=options.clips_at_once or (options.clips if device.type == "cuda" else 1),
        grid=options.grid or "",
        model=options.model,
    )


def grammar_prompts(count: int) -> tuple[str, ...]:
    """Return sentences of the bundled models' grammar, the same every time."""
    draw = random.Random(0)
    return tuple(str(_caption(draw, objects=1 + index % 2)) for index in range(count))


def _caption(draw: random.Random, *, objects: int) -> Caption:
    made = tuple(
        ObjectCaption(
            shape=draw.choice(SHAPES),
            colour=draw.choice(tuple(COLOURS)),
            direction=draw.choice(tuple(DIRECTIONS)),
        )
        for _ in range(objects)
    )
    return Caption(made, draw.choice(tuple(BACKGROUND_COLOURS)), draw.choice(PATTERNS))


if __name__ == "__main__":
    sys.exit(main())
