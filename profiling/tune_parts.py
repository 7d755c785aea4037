"""Time launch configurations of k-means, block means and block mass at Wan 14B 720p shape.

``python -m vidsparse.profiling.tune_parts --heads 8``
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch

from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.hopper_mass import MassConfig, block_mass_gluon, mass_reasons
from vidsparse.kernels.triton_block_means import key_value_means_triton
from vidsparse.kernels.triton_kmeans import assign_triton, update_triton
from vidsparse.kernels.triton_sort import SortConfig, sort_by_label_triton
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
_SORT = (
    SortConfig(1024, 32, 16, 64), SortConfig(1024, 64, 16, 64), SortConfig(2048, 32, 16, 64),
    SortConfig(512, 32, 16, 64), SortConfig(1024, 32, 32, 32),
)  # fmt: skip
# Rows at once, warps.
_MEANS = ((32, 1), (16, 1), (32, 2), (64, 2), (32, 4), (64, 4), (128, 8))
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
    lse = torch.full((1, H, S), 11.0, device=device)
    mask = BlockMask.full(block_q=128, block_kv=128, seq_q=S, seq_kv=S, device=device)
    functions: dict[str, Callable[[], object]] = {**dense_functions(x, x, x)}
    for K in (300, 1000):
        centroids = x[:, :, :K].float().contiguous()
        labels = assign_triton(x, centroids)
        tokens = sort_by_label_triton(labels, K)
        for a in _ASSIGN:
            functions[f"assign {K} {a}"] = partial(assign_triton, x, centroids, a)
        for u in _UPDATE:
            functions[f"update {K} {u}"] = partial(update_triton, x, *tokens, centroids, u)
        for s in _SORT:
            functions[f"sort {K} {s}"] = partial(sort_by_label_triton, labels, K, s)
    for m in _MEANS:
        functions[f"means {m}"] = partial(key_value_means_triton, x, x, mask, m)
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
