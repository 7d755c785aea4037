"""Run each model family on a GPU: random weights, the head size and the video of a released model.

``python -m vidsparse.profiling.check_families --out families-h200.json``; ``vidsparse models``
shows what is in ``profiling/results/families-*.json``.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsparse.api import CallSummary, enabled
from vidsparse.layout import VideoLayout
from vidsparse.methods.svg import SVG
from vidsparse.pipelines.base import family_of
from vidsparse.pipelines.testing_parts import TinyPipeline
from vidsparse.pipelines.testing_sizes import (
    RELEASED_SIZES,
    modules_of,
    released_heads,
    released_size,
    with_inputs_like,
)
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.rows import Row, RowFile, module_command, print_error

# How far a mask that is replaced by a length may move a video, relative, as root mean square, in
# units of its dtype's eps. Without the masked keys attention adds up in another order, which costs
# a call one unit. Two steps of two layers with a guidance of 6 make 8 of it, in float32 as in
# float64; counting one padding token more moves a short video by 5000 in float32.
_UNITS = 16


@dataclass(frozen=True)
class _NotedSVG(SVG):
    """SVG that notes the shapes it plans for."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Plan as SVG does."""
        self.shapes.append(tuple(q.shape))
        return super().plan(q, k, v, layout, site, state)


def check_family(
    name: str,
    device: str = "cuda",
    *,
    density: float = 0.5,
    build: Callable[..., TinyPipeline] = released_size,
) -> Row:
    """Generate a video without, with dense and with sparse attention of ours.

    Args:
        name: one of ``RELEASED_SIZES``.
        device: where to run.
        density: of the sparse run.
        build: makes the pipeline from name and device, in bfloat16.

    Returns:
        ``{case, family, transformer, pipeline, method, heads, tokens, head_size, density,
        requested_density, dense_equal, difference, difference_float32, sparse_finite,
        sparse_calls, dense_calls}``. ``tokens`` are those of the longest sparse call.
        ``difference`` is that of density 1 to the pipeline without vidsparse, relative, as root
        mean square: 0 where ``dense_equal``. Where a length stands in the place of a mask,
        attention is another kernel, and equal means 16 eps at most, here and in
        ``difference_float32``, of a short video; else the latter is None.
    """
    tiny = build(name, device=device)
    dense = tiny.latents()
    same, _ = _run(tiny, SVG(1.0))
    method = _NotedSVG(density)
    sparse, summary = _run(tiny, method)
    transformer = tiny.pipe.transformer
    family = family_of(transformer)
    difference, precisely = _distance(same, dense), None
    equal = difference == 0
    if family.cuts_padding:
        precisely = _difference_in_float32(name, device)
        equal = _is_rounding(difference, same.dtype) and _is_rounding(precisely, torch.float32)
    longest = max(method.shapes, key=lambda shape: shape[2])
    return {
        "case": name,
        "family": family.name,
        "transformer": type(transformer).__name__,
        "pipeline": type(tiny.pipe).__name__,
        "method": SVG.name,
        "heads": longest[1],
        "tokens": longest[2],
        "head_size": longest[3],
        "density": round(summary.density or 1.0, 4),
        "requested_density": density,
        "dense_equal": equal,
        "difference": difference,
        "difference_float32": precisely,
        "sparse_finite": bool(torch.isfinite(sparse).all()),
        "sparse_calls": summary.sparse_calls,
        "dense_calls": sum(summary.dense_calls.values()),
    }


def _run(tiny: TinyPipeline, method: SVG) -> tuple[Tensor, CallSummary]:
    with enabled(tiny.pipe, method, dense_steps=0) as handle:
        return tiny.latents(), handle.summary()


def _difference_in_float32(name: str, device: str) -> float:
    """Do as ``difference`` with a short video: the mask of all pairs takes memory."""
    tiny = released_heads(name, device=device)
    for module in modules_of(tiny):
        module.float()
    tiny = with_inputs_like(tiny, torch.empty(0, device=device))
    # The kernel that rounds nothing between its sums.
    with sdpa_kernel(SDPBackend.MATH):
        return _distance(_run(tiny, SVG(1.0))[0], tiny.latents())


def _is_rounding(difference: float, dtype: torch.dtype) -> bool:
    return difference <= _UNITS * torch.finfo(dtype).eps


def _distance(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 1 when something is not as it should be, 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.check_families")
    parser.add_argument("--cases", default=",".join(RELEASED_SIZES), help="by default all")
    parser.add_argument("--density", type=float, default=0.5, help="of the sparse runs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the rows --out already has")
    options = parser.parse_args(arguments)
    names = options.cases.split(",")
    unknown = sorted(set(names) - set(RELEASED_SIZES))
    if unknown:
        print_error(f"error: unknown case {', '.join(unknown)}; use {', '.join(RELEASED_SIZES)}")
        return 2
    meta = run_meta(options.device, module_command("vidsparse.profiling.check_families"))
    keep = RowFile(options.out, meta, append=options.append)
    wrong = 0
    for name in names:
        try:
            row = check_family(name, options.device, density=options.density)
        # What fails in one family must not hide what the others do.
        except Exception as error:
            print_error(f"{name} failed: {type(error).__name__}: {error}")
            wrong += 1
            continue
        keep(row)
        wrong += not is_right(row)
    return int(bool(wrong))


def is_right(row: Row) -> bool:
    """Tell whether a family did in a run what it promises."""
    return bool(row["dense_equal"] and row["sparse_finite"] and row["sparse_calls"])


if __name__ == "__main__":
    sys.exit(main())
