"""Time the parts of an SVG2 call in steady state, beside dense attention.

``python -m vidsparse.profiling.svg2_parts --out results.json`` on a GPU.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from vidsparse.attention import attend_permuted, restore_output
from vidsparse.kernels.block_sparse_attention import block_sparse_attention
from vidsparse.kernels.kmeans import kmeans
from vidsparse.kernels.permute import permute_qkv
from vidsparse.methods.budget import flat_top_k, shared_top_k
from vidsparse.methods.clusters import (
    keep_top_p,
    log_cluster_mass,
    log_key_weight,
    spread_tokens,
)
from vidsparse.methods.svg2 import Svg2, video_density
from vidsparse.plan import CallSite
from vidsparse.profiling.bench import dense_functions
from vidsparse.profiling.bench_methods import CASES
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.rows import Row, module_command
from vidsparse.profiling.synthetic import video_qkv
from vidsparse.profiling.timed_calls import MethodCase
from vidsparse.profiling.timing import time_interleaved


def parts(
    case: MethodCase, density: float, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Return what to time, by name, for a case with text or without."""
    layout, method = case.layout, Svg2(density=density)
    q, k, v = video_qkv(layout, case.batch, case.heads, case.head_size, device, dtype)
    video = slice(layout.text_before, layout.video_end)
    counts = method.cluster_counts(layout)
    first = method.first_iterations
    clusters = [
        kmeans(x[:, :, video], n, iterations=first, init=spread_tokens(x[:, :, video], n))
        for x, n in zip((q, k), counts, strict=True)
    ]
    (_, q_centroids, q_sizes, _), (_, k_centroids, k_sizes, _) = clusters
    mass = log_cluster_mass(q_centroids, k_centroids, k_sizes)
    weight, share = log_key_weight(mass, k_sizes), video_density(density, layout)
    sizes = q_sizes.long(), k_sizes.long()
    state = method.init_state()
    site = CallSite("transformer", 1, 2, 10, 50, 0.5, 0, 0)
    plan = method.plan(q, k, v, layout, site, state)
    output = attend_permuted(q, k, v, plan)
    moved = permute_qkv(q, k, v, plan.q_order, plan.kv_order)

    def again(x: torch.Tensor, count: int, init: torch.Tensor) -> Callable[[], object]:
        return lambda: kmeans(x[:, :, video], count, iterations=method.iterations, init=init)

    return {
        **dense_functions(q, k, v),
        "whole plan": lambda: method.plan(q, k, v, layout, site, state),
        "cluster q": again(q, counts[0], q_centroids),
        "cluster k": again(k, counts[1], k_centroids),
        "score": lambda: log_key_weight(
            log_cluster_mass(q_centroids, k_centroids, k_sizes), k_sizes
        ),
        "choose, shared heads": lambda: shared_top_k(weight, share, *sizes),
        "choose, equal heads": lambda: flat_top_k(weight, share, *sizes),
        "choose, top-p": lambda: keep_top_p(mass, 0.9),
        "permute q k v": lambda: permute_qkv(q, k, v, plan.q_order, plan.kv_order),
        "kernel": lambda: block_sparse_attention(*moved, plan.mask),
        "restore": lambda: restore_output(output, plan),
    }


def bench_parts(
    case: MethodCase, density: float, device: torch.device, *, repeats: int = 7
) -> list[Row]:
    """Return one row per part: its median time in ms and its share of dense attention's."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    times = time_interleaved(
        parts(case, density, device, dtype), device, repeats=repeats, warmup_ms=20
    )
    dense_ms = min(t.median_ms for name, t in times.items() if name.startswith("dense"))
    return [
        {
            "case": case.name,
            "density": density,
            "part": name,
            "ms": round(timing.median_ms, 4),
            "share_of_dense": round(timing.median_ms / dense_ms, 5),
        }
        for name, timing in times.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.svg2_parts")
    parser.add_argument("--case", default="wan14b-720p", choices=sorted(CASES))
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    rows = bench_parts(CASES[options.case], options.density, device, repeats=options.repeats)
    for row in rows:
        sys.stdout.write(f"{row['part']:22s} {row['ms']:10.3f} ms {row['share_of_dense']:9.4f}\n")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "meta": run_meta(device, module_command("vidsparse.profiling.svg2_parts")),
            "rows": rows,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
