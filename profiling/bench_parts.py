"""Time what surrounds attention: list building, permutation, sorting, k-means, block mass.

``python -m vidsparse.profiling.bench_parts --json results.json``, on a GPU, at Wan 14B 720p shape.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_sparse_attention import RunningStat, block_sparse_attention
from vidsparse.kernels.block_statistics import block_mass, block_means
from vidsparse.kernels.kmeans import kmeans
from vidsparse.kernels.permute import permute_qkv, restore_tokens, sort_by_label
from vidsparse.kernels.testing import random_sizes
from vidsparse.profiling.bench import dense_functions
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.timing import time_interleaved


def parts(H: int, S: int, D: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return what to time, by name, for one attention call's shape."""
    g = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, H, S, D, generator=g, device=device, dtype=torch.bfloat16) for _ in range(3)
    )
    order = torch.rand(1, H, S, generator=g, device=device).argsort(-1).to(torch.int32)
    labels = torch.randint(0, 1000, (1, H, S), generator=g, device=device, dtype=torch.int32)
    blocks = -(-S // 128)
    dense = torch.rand(1, H, blocks, blocks, generator=g, device=device) < 0.25
    clustered = torch.rand(1, H, 300, 1000, generator=g, device=device) < 0.25
    sizes = [random_sizes(1, H, n, S, generator=g) for n in (300, 1000)]
    ragged = RaggedBlockMask.from_sizes(clustered, *sizes, seq_q=S, seq_kv=S)
    first_q, first_k = q[:, :, :300].float(), k[:, :, :1000].float()
    lse = torch.randn(1, H, S, generator=g, device=device) + 11
    mask = BlockMask.from_dense(dense, block_q=128, block_kv=128, seq_q=S, seq_kv=S)
    return {
        **dense_functions(q, k, v),
        "attention 0.25": lambda: block_sparse_attention(q, k, v, mask),
        "attention 0.25 stats": lambda: block_sparse_attention(q, k, v, mask, stats_lse=lse),
        **{
            f"attention 0.25 running {stat}": partial(
                block_sparse_attention, q, k, v, mask, running=stat
            )
            for stat in RunningStat
        },
        "lists 128x128": lambda: BlockMask.from_dense(
            dense, block_q=128, block_kv=128, seq_q=S, seq_kv=S
        ),
        "lists ragged": lambda: _ragged_lists(ragged),
        "permute q k v": lambda: permute_qkv(q, k, v, order, order),
        "restore o": lambda: restore_tokens(q, order),
        "sort by label": lambda: sort_by_label(labels, 1000),
        "kmeans step q 300": lambda: kmeans(q, 300, iterations=1, init=first_q),
        "kmeans step k 1000": lambda: kmeans(k, 1000, iterations=1, init=first_k),
        "block mass 128x128": lambda: block_mass(q, k, lse, block_q=128, block_kv=128),
        "block means 128": lambda: block_means(q, block=128),
    }


def _ragged_lists(mask: RaggedBlockMask) -> object:
    from vidsparse.kernels.triton_ragged_lists import chunk_lists, ordered_query_tiles

    lists = chunk_lists(mask, 16, wide=128)
    return lists, ordered_query_tiles(mask.q_offsets, lists, mask.seq_q, 128, 8)


def bench_parts(H: int, S: int, D: int, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Return one row per part with its median time and its share of dense attention's."""
    times = time_interleaved(parts(H, S, D, device), device, repeats=repeats, warmup_ms=50)
    dense_ms = min(t.median_ms for name, t in times.items() if name.startswith("dense"))
    return [
        {"part": name, "H": H, "S": S, "D": D, "ms": round(t.median_ms, 4),
         "share_of_dense": round(t.median_ms / dense_ms, 5)}
        for name, t in times.items()
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Time what surrounds attention.")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device("cuda")
    rows = bench_parts(options.heads, 75600, 128, device, options.repeats)
    for row in rows:
        sys.stdout.write(f"{row['part']:22s} {row['ms']:9.4f} ms  {row['share_of_dense']:.4f}\n")
    if options.json:
        command = f"python -m vidsparse.profiling.bench_parts --heads {options.heads}"
        document = {"meta": run_meta(device, command), "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
