"""Look at the bundled model's attention: what blocks can hold, and which heads are temporal.

python examples/train_tiny/attention_study.py --grids all --out attention-tiny.json

Measure grids apart with --append; card.py draws the result.
"""

import argparse
import math
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidsparse.attention import SparseAttention
from vidsparse.kernels.block_mask import block_sizes
from vidsparse.kernels.block_statistics import block_mass
from vidsparse.layout import VideoLayout
from vidsparse.loading import load_pipeline, pick_device, pick_dtype
from vidsparse.methods.base import SparseMethod
from vidsparse.methods.budget import flat_top_k
from vidsparse.methods.random_blocks import site_generator
from vidsparse.methods.svg import profile_errors, sample_rows
from vidsparse.methods.svg_masks import head_masks
from vidsparse.models import info
from vidsparse.pipelines.attach import attach
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.rows import RowFile
from vidsparse.schedule import DenseSchedule

PROMPTS = (
    "a small red circle moves right over drifting green stripes",
    "a large blue star moves up and left over a plain grey background",
)
BLOCK = 64
DENSITIES = (0.5, 0.25, 0.125)
SVG_DENSITY = 0.25
SVG_ROWS = 64
# Where a generation is looked at, in shares of its steps.
STEP_SHARES = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Study(SparseMethod):
    """Leave every call dense and measure the conditional branch at a few steps.

    Attributes:
        steps: the denoising steps looked at.
        recalls: per layer, one (densities, H) tensor of each call.
        temporal: per layer, one (H,) tensor of each call: 1 where SVG's test says temporal.
    """

    name: ClassVar[str] = "study"
    summary: ClassVar[str] = "measures dense calls"
    source: ClassVar[str] = "control"

    steps: frozenset[int] = frozenset()
    recalls: dict[int, list[Tensor]] = field(default_factory=dict)
    temporal: dict[int, list[Tensor]] = field(default_factory=dict)

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Return None: dense."""
        if site.branch == 0 and site.step in self.steps:
            q, k, v = (x[:1] for x in (q, k, v))
            self.recalls.setdefault(site.layer, []).append(oracle_recalls(q, k))
            is_temporal = svg_test(q, k, v, layout, site)
            self.temporal.setdefault(site.layer, []).append(is_temporal)
        return None


def oracle_recalls(q: Tensor, k: Tensor) -> Tensor:
    """Return the (densities, H) share of attention mass in the best blocks of (1, H, S, D)."""
    mass = block_mass(q, k, block_q=BLOCK, block_kv=BLOCK)
    sizes = block_sizes(q.shape[2], BLOCK, device=q.device).long()
    kept = [(mass * flat_top_k(mass, density, sizes, sizes)) for density in DENSITIES]
    return torch.stack([one.sum((-1, -2))[0] for one in kept]).cpu() / q.shape[2]


def svg_test(q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite) -> Tensor:
    """Return (H,) float32, 1 where a temporal mask errs less than a spatial one."""
    masks = head_masks(layout, (BLOCK, BLOCK), SVG_DENSITY, "frame", q.device)
    rows = sample_rows(SVG_ROWS, q.shape[2], site_generator(site, 0, q.device))
    # In float32: where both errors are small, bfloat16 would decide by its rounding.
    spatial, temporal = profile_errors(q.float(), k.float(), v.float(), masks, rows)
    return (temporal < spatial)[0].float().cpu()


def look(pipe: Any, grid: str, steps: int | None, prompts: int) -> dict[str, Any]:
    """Generate clips on a grid and return what their attention was like."""
    card = info("tiny")
    size, total = card.grids[grid], steps or card.steps
    study = Study(steps=frozenset(math.floor(share * total) for share in STEP_SHARES))
    attachment = attach(pipe, SparseAttention(study, DenseSchedule(dense_steps=0)))
    for seed, prompt in enumerate(PROMPTS[:prompts]):
        with torch.no_grad():
            pipe(
                prompt,
                height=size.height,
                width=size.width,
                num_frames=size.num_frames,
                num_inference_steps=total,
                guidance_scale=card.guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="latent",
            )
    attachment.detach()
    return row_of(study, grid, size.tokens, prompts)


def row_of(study: Study, grid: str, tokens: int, prompts: int) -> dict[str, Any]:
    """Average over steps and prompts; lists are layers, then heads."""
    layers = sorted(study.recalls)
    recall = torch.stack([torch.stack(study.recalls[i]).mean(0) for i in layers], 1)
    temporal = torch.stack([torch.stack(study.temporal[i]).mean(0) for i in layers])
    return {
        "case": "attention",
        "grid": grid,
        "tokens": tokens,
        "block": BLOCK,
        "steps": sorted(study.steps),
        "prompts": list(PROMPTS[:prompts]),
        "oracle_recall": {str(d): _lists(r) for d, r in zip(DENSITIES, recall, strict=True)},
        "mean_oracle_recall": {
            str(d): round(float(r.mean()), 4) for d, r in zip(DENSITIES, recall, strict=True)
        },
        "svg": {"density": SVG_DENSITY, "rows": SVG_ROWS, "sink": "frame"},
        "temporal": _lists(temporal),
        "temporal_share": round(float(temporal.mean()), 4),
    }


def _lists(x: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in x.tolist()]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grids", default="cpu", help="comma-separated, or 'all'")
    parser.add_argument("--steps", type=int, help="denoising steps; the model's by default")
    parser.add_argument("--prompts", type=int, default=2, choices=range(1, len(PROMPTS) + 1))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--append", action="store_true", help="keep the file's other grids")
    return parser.parse_args()


def main() -> None:
    args = parse()
    device = pick_device(args.device)
    pipe = load_pipeline("tiny", device=device, dtype=pick_dtype(args.dtype, device))
    meta = run_meta(device, shlex.join(["python", *sys.argv]))
    report = RowFile(args.out, meta, append=args.append)
    grids = list(info("tiny").grids) if args.grids == "all" else args.grids.split(",")
    for grid in grids:
        report(look(pipe, grid, args.steps, args.prompts))


if __name__ == "__main__":
    main()
