"""Time launch configurations of k-means and block mass at Wan 14B 720p shape.

``python -m vidsparse.profiling.tune_parts --heads 8``
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch

from vidsparse.kernels.hopper_mass import MassConfig, block_mass_gluon, mass_reasons
from vidsparse.kernels.triton_kmeans import assign_triton, update_triton
from vidsparse.kernels.triton_sort import sort_by_label_triton
from vidsparse.kernels.triton_statistics import block_mass_triton
from vidsparse.profiling.bench import dense_functions
from vidsparse.profiling.timing import time_interleaved

_ASSIGN = (
    (128, 64, 8, 3), (128, 64, 4, 3), (128, 128, 8, 2), (128, 128, 8, 3), (64, 128, 4, 2),
    (64, 64, 4, 3), (128, 256, 8, 2),
)  # fmt: skip
_UPDATE = (
    (64, 4, 1),
    (64, 2, 3),
    (32, 4, 3),
    (64, 4, 3),
    (32, 2, 3),
    (64, 8, 3),
    (32, 8, 4),
    (16, 2, 4),
)
_MASS = ((2, 128), (3, 128), (3, 64), (2, 64))
_MASS_GLUON = tuple(
    MassConfig(*cta, cubic)
    for cta, cubic in itertools.product(
        (
            (2, 128, 4, 240, 168),
            (3, 128, 3, 160, 128),
            (3, 128, 4, 160, 128),
            (3, 64, 8, 160, 128),
        ),
        (0, 4, 8),
    )
)


def variants(H: int, S: int, D: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return what to time, by name."""
    g = torch.Generator(device).manual_seed(0)
    x = torch.randn(1, H, S, D, generator=g, device=device, dtype=torch.bfloat16)
    centroids = x[:, :, :1000].float().contiguous()
    labels = assign_triton(x, centroids)
    tokens = sort_by_label_triton(labels, 1000)
    lse = torch.full((1, H, S), 11.0, device=device)
    functions: dict[str, Callable[[], object]] = {**dense_functions(x, x, x)}
    for a in _ASSIGN:
        functions[f"assign 1000 {a}"] = partial(assign_triton, x, centroids, a)
    for u in _UPDATE:
        functions[f"update 1000 {u}"] = partial(update_triton, x, *tokens, centroids, u)
    for stages, widest in _MASS:
        functions[f"mass stages {stages} keys {widest}"] = partial(
            block_mass_triton, x, x, lse, 128, 128, D**-0.5, stages=stages, widest=widest
        )
    for config in () if mass_reasons(x, x, 128, 128) else _MASS_GLUON:
        functions[f"mass {config}"] = partial(
            block_mass_gluon, x, x, lse, 128, 128, D**-0.5, config=config
        )
    return functions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Time configurations of k-means and block mass.")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    device = torch.device("cuda")
    functions = variants(options.heads, 75600, 128, device)
    times = time_interleaved(functions, device, repeats=options.repeats, warmup_ms=30)
    for name, timing in times.items():
        sys.stdout.write(f"{name:32s} {timing.median_ms:9.4f} ms\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
