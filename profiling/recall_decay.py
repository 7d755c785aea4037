"""Follow a mask's recall while steps reuse it, on a dense run of a model.

``python -m vidsparse.profiling.recall_decay --methods adaspa,draft --density 0.3 --steps 50``
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from vidsparse.api import enabled
from vidsparse.attention import attend_permuted
from vidsparse.errors import VidsparseError
from vidsparse.generate import Sampling, check_sampling, settle_sampling
from vidsparse.kernels.launch import preferred_blocks
from vidsparse.layout import VideoLayout
from vidsparse.loading import load_pipeline, pick_device, pick_dtype
from vidsparse.methods.base import SparseMethod
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.method_spec import parse_method, split_methods
from vidsparse.profiling.recall import oracle_recall, recall
from vidsparse.profiling.rows import Row, RowFile, module_command, print_error
from vidsparse.profiling.sweep import grammar_prompts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Layers looked at, in shares of the model's.
_LAYERS = (0.2, 0.5, 0.85)


@dataclass
class Seen:
    """One method's mask at one call: 0-dim tensors on the device, read at the end."""

    spec: str
    site: CallSite
    tokens: int
    recall: Tensor
    oracle: Tensor
    density: Tensor


@dataclass(frozen=True)
class RecallWatch(SparseMethod):
    """Leave every call dense, and see what methods would have kept of its attention map.

    All methods see the same tokens, those of a dense run, so that nothing but the age of a mask
    changes its recall.

    Attributes:
        density: the methods'.
        methods: what plans, by specification.
        seen: what was found.
    """

    name: ClassVar[str] = "recall watch"
    summary: ClassVar[str] = "judges other methods on dense calls"
    source: ClassVar[str] = "control"

    methods: dict[str, SparseMethod] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    def init_state(self) -> dict[str, Any]:
        """Return a state of each method."""
        return {spec: method.init_state() for spec, method in self.methods.items()}

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Return None: dense."""
        layers = {math.floor(share * site.num_layers) for share in _LAYERS}
        if site.branch == 0 and site.layer in layers:
            q, k, v = q[:1], k[:1], v[:1]
            blocks = preferred_blocks(q.device)
            best = oracle_recall(q, k, self.density, *blocks).mean()
            for spec, method in self.methods.items():
                plan = _mask_after(method, (q, k, v), layout, site, state[spec])
                if plan is not None:
                    found = recall(q, k, plan).mean(), best, plan.density()
                    self.seen.append(Seen(spec, site, layout.num_tokens, *found))
        return None


def _mask_after(
    method: SparseMethod,
    qkv: tuple[Tensor, Tensor, Tensor],
    layout: VideoLayout,
    site: CallSite,
    state: Any,
) -> AttentionPlan | None:
    """Make one call, and return its plan; that of the mask it found where it was dense itself."""
    plan = method.decide(*qkv, layout, site, state)
    if plan is None:
        return None
    method.observe(attend_permuted(*qkv, plan), plan, site, state)
    return plan if plan.dense_reason is None else method.decide(*qkv, layout, site, state)


def decay_rows(watch: RecallWatch, grid: str, num_steps: int, first_step: int) -> list[Row]:
    """Return one row per method and step: means over heads and layers, and the mask's age.

    Args:
        watch: what looked at a run.
        grid: name for the rows.
        num_steps: steps of the run.
        first_step: its first sparse one.
    """
    by_step: dict[tuple[str, int], list[Seen]] = {}
    for seen in watch.seen:
        by_step.setdefault((seen.spec, seen.site.step), []).append(seen)
    rows = []
    for (spec, step), found in sorted(by_step.items()):
        searches = [
            start
            for phase in watch.methods[spec].phases(num_steps, first_step)
            for start in phase.steps
            if phase.searches and start <= step
        ]
        best, kept = (fmean(float(getattr(s, x)) for s in found) for x in ("oracle", "recall"))
        rows.append(
            {
                "method": spec,
                "grid": grid,
                "tokens": found[0].tokens,
                "density": round(fmean(float(s.density) for s in found), 4),
                "requested_density": watch.density,
                "step": step,
                "num_steps": num_steps,
                "age": step - max(searches, default=step),
                "recall": round(kept, 4),
                "oracle_recall": round(best, 4),
                "of_oracle": round(kept / best, 4),
                "of_oracle_per_layer": [round(float(s.recall / s.oracle), 4) for s in found],
            }
        )
    return rows


def draw_decay(rows: Sequence[Row]) -> "Figure":
    """Draw the share of the oracle's recall over the steps, a line per method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for spec in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == spec]
        steps, kept = zip(*((row["step"], row["of_oracle"]) for row in own), strict=True)
        axes.plot(steps, kept, label=spec)
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    first = rows[0]
    axes.set_title(f"density {first['requested_density']}, {first['tokens']} tokens", fontsize=11)
    axes.set_xlabel("denoising step")
    axes.set_ylabel("recall, of the best raster blocks'")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.recall_decay")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--methods", default="adaspa,adaspa:search_at=[0.2],draft")
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--grid", help="one of the model's grids; its first by default")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--dense-steps", type=float, default=0.2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path, help="PNG of the curves to write")
    parser.add_argument("--append", action="store_true", help="keep the rows --out already has")
    try:
        _run(parser.parse_args(arguments))
    except VidsparseError as error:
        print_error(f"error: {error}")
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    device = pick_device(options.device)
    keep = RowFile(
        options.out,
        run_meta(device, module_command("vidsparse.profiling.recall_decay")),
        append=options.append,
    )
    methods = {spec: parse_method(spec, options.density) for spec in split_methods(options.methods)}
    watch = RecallWatch(options.density, methods=methods)
    asked = Sampling(None, None, None, options.steps)
    sampling = settle_sampling(options.model, options.grid, asked)
    pipe = load_pipeline(options.model, device=device, dtype=pick_dtype(options.dtype, device))
    check_sampling(pipe, sampling)
    with enabled(pipe, watch, dense_steps=options.dense_steps), torch.no_grad():
        pipe(
            prompt=list(grammar_prompts(1)),
            generator=[torch.Generator("cpu").manual_seed(0)],
            output_type="latent",
            **sampling.arguments(),
        )
    first_step = math.floor(options.dense_steps * options.steps + 1e-9)
    rows = decay_rows(watch, options.grid or "", options.steps, first_step)
    for row in rows:
        keep(row)
    if options.picture is not None:
        draw_decay(rows).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
