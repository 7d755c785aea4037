"""Time attention that reports on its tiles beside attention that does not, from full masks down.

``python -m vidsparse.profiling.bench_statistics --out results.json``, on a GPU, at Wan 14B 720p
shape. LiteAttention pays this and nothing else, so its sparse steps should cost what their density
says: ``over_linear`` compares with the full mask's plain time, times density.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.block_sparse_attention import RunningStat, block_sparse_attention
from vidsparse.kernels.block_statistics import block_mass
from vidsparse.kernels.testing import random_block_mask
from vidsparse.profiling.bench import dense_functions
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.rows import Row, RowFile, module_command
from vidsparse.profiling.timing import time_interleaved

# Shares of skipped tiles that LiteAttention's authors report times for.
_SKIPPED = (0.0, 0.2, 0.42, 0.57, 0.77)
_BLOCK = 128


def statistics_rows(
    H: int, S: int, D: int, device: torch.device, *, repeats: int = 9
) -> Iterator[Row]:
    """Yield a row for each density and statistic, the plain kernel first.

    Args:
        H: heads, batch 1.
        S: tokens.
        D: head size.
        device: a GPU, or a CPU to try it.
        repeats: launches of each, in turn.

    Raises:
        AssertionError: the masses are not those of ``block_mass``; no time is given then.
    """
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = (
        torch.randn(1, H, S, D, generator=generator, device=device, dtype=dtype) for _ in range(3)
    )
    dense = time_interleaved(dense_functions(q, k, v), device, repeats=repeats)
    dense_ms = min(timing.median_ms for timing in dense.values())
    full_ms = None
    for skipped in _SKIPPED:
        mask = random_block_mask(
            1, H, S, S, block_q=_BLOCK, block_kv=_BLOCK, density=1 - skipped, generator=generator
        )
        lse = block_sparse_attention(q, k, v, mask).lse
        assert lse is not None
        _check(q, k, v, mask, lse)
        times = time_interleaved(_calls(q, k, v, mask, lse), device, repeats=repeats)
        plain_ms = times["none"].median_ms
        density = float(mask.density())
        full_ms = plain_ms if full_ms is None else full_ms
        for name, timing in times.items():
            yield {
                "case": "wan14b-720p" if (S, D) == (75600, 128) else f"{S}x{D}",
                "heads": H,
                "density": round(density, 4),
                "requested_density": round(1 - skipped, 4),
                "statistic": name,
                "ms": round(timing.median_ms, 4),
                "dense_ms": round(dense_ms, 4),
                "over_plain": round(timing.median_ms / plain_ms - 1, 4),
                "over_linear": round(timing.median_ms / (full_ms * density) - 1, 4),
            }


def _calls(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, lse: Tensor
) -> dict[str, Callable[[], AttentionOutput]]:
    attend = partial(block_sparse_attention, q, k, v, mask)
    return {
        "none": attend,
        "mass against an LSE": partial(attend, stats_lse=lse),
        **{f"running {stat.value}": partial(attend, running=stat) for stat in RunningStat},
    }


def _check(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, lse: Tensor) -> None:
    """Compare the masses of one head with those of a kernel that does nothing else."""
    stats = block_sparse_attention(q, k, v, mask, stats_lse=lse).block_stats
    assert stats is not None
    want = block_mass(q[:, :1], k[:, :1], lse[:, :1], block_q=_BLOCK, block_kv=_BLOCK)
    want = want.masked_fill(~mask.to_dense()[:, :1], 0)
    torch.testing.assert_close(stats[:, :1], want, rtol=1e-2, atol=1e-3)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.bench_statistics")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=75600)
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the rows --out already has")
    options = parser.parse_args(arguments)
    for name in ("heads", "tokens", "head_size", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    device = torch.device(options.device)
    command = module_command("vidsparse.profiling.bench_statistics")
    keep = RowFile(options.out, run_meta(device, command), append=options.append)
    for row in statistics_rows(
        options.heads, options.tokens, options.head_size, device, repeats=options.repeats
    ):
        keep(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
