"""Compile the plain Triton kernels for a GPU where there is none; print what they take.

``python tests/kernels/compile_triton.py CAPABILITY`` prints one JSON object: ``room``, the bytes of
shared memory there are, and what is ``taken`` by case and kernel, a message where the compiler
refuses a case.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from compiling import SHARED_MEMORY, compile_only
from torch import Tensor

from vidsparse.kernels import (
    triton_attention,
    triton_attention_8bit,
    triton_bit_masks,
    triton_block_errors,
    triton_kept_pairs,
    triton_kmeans,
    triton_lists,
    triton_permute,
    triton_pooled_scores,
    triton_pooling,
    triton_quantize,
    triton_sampled_rows,
    triton_sort,
    triton_split_top_blocks,
    triton_statistics,
    triton_tile_drop,
    triton_top_blocks,
)
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_means import KeyValueMeans
from vidsparse.kernels.moved_heads import MovedHeads
from vidsparse.kernels.quantize import quantize_qkv_torch
from vidsparse.kernels.running_statistics import RunningStat
from vidsparse.kernels.tile_drop import TileScales

B, H, S, D, N = 1, 2, 300, 128, 5
# Neither tokens nor blocks are multiples of 16, which is what most videos bring.
Q, K, V = torch.randn(3, B, H, S, D).bfloat16()
MASK = BlockMask.full(block_q=64, block_kv=64, seq_q=S, seq_kv=S)
ORDER = torch.zeros(S, dtype=torch.int32)
SIZES = torch.full((B, H, N), S // N, dtype=torch.int32)
KEPT = torch.ones(B, H, N, N, dtype=torch.bool)
RAGGED = RaggedBlockMask.from_sizes(KEPT, SIZES, SIZES, seq_q=S, seq_kv=S)
TANGENTS = torch.zeros(B, H, N, D)
LSE = torch.zeros(B, H, S)


def _attend(x: Tensor = Q, **options: Any) -> None:
    triton_attention.attend_triton(x, x, x, MASK, scale=0.1, **options)


def _select(
    select: Callable[..., Tensor], N: int, dtype: torch.dtype, *, shared: bool, forced: bool
) -> None:
    scores = torch.zeros(3, N, dtype=dtype)
    weights = torch.ones(1 if shared else 3, N, dtype=torch.int32)
    marks = torch.zeros(weights.shape, dtype=torch.bool) if forced else None
    select(scores, weights, weights.sum(-1, keepdim=True), marks)


def _score(x: Tensor, config: triton_pooled_scores.ScoresConfig | None) -> None:
    rows, means = torch.arange(0, S, 4, dtype=torch.int32), x[:, :, :N]
    triton_pooled_scores.pooled_scores_triton(
        x, rows, means, torch.zeros(N), means, torch.ones(B, H, N), means[:, :, 0], group=16,
        config=config,
    )  # fmt: skip


def _attend_8bit() -> None:
    x = quantize_qkv_torch(Q, K, V, 64, 0.1)
    triton_attention_8bit.attend_quantized_triton(x, MASK, torch.empty_like(Q))


def _drop_tiles() -> None:
    scales = TileScales(torch.ones(B, H, N), torch.ones(N), torch.ones(B, H, N))
    bits = torch.zeros(B, H, N, 1, dtype=torch.uint8)
    triton_tile_drop.drop_light_tiles_triton(bits, torch.zeros(KEPT.shape), KEPT[0, 0], 0.1, scales)


def _cases(capability: int) -> dict[str, Callable[[], object]]:
    running = {f"attention {stat}": partial(_attend, running=stat) for stat in RunningStat}
    moved = MovedHeads(torch.ones(B, H, dtype=torch.bool), ORDER.expand(B, H, S), K, V)
    select = {
        f"{name} {dtype} {shared} {forced}": partial(
            _select, run, columns, dtype, shared=shared, forced=forced
        )
        for name, run, columns in (
            ("rows", triton_top_blocks.keep_top_weight_triton, 999),
            ("long rows", triton_split_top_blocks.keep_top_weight_split, 9001),
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for shared, forced in ((True, True), (False, False))
    }
    config = triton_pooled_scores.HOPPER if capability >= 90 else triton_pooled_scores.SMALLER
    pools = {
        f"pool {unit} {variances}": partial(
            triton_pooling.permute_and_pool_triton, K, ORDER, unit, variances, torch.bfloat16
        )
        for unit, variances in ((1, None), (64, "channels"), (64, "total"), (128, "channels"))
    }
    offsets = torch.arange(0, S + 1, S // N, dtype=torch.int32)
    clusters = torch.zeros(B, H, 40, D)
    means = KeyValueMeans(K[:, :, :N], V[:, :, :N], torch.zeros(B, H, N))
    bits = triton_bit_masks
    quantize = partial(triton_quantize.quantize_qkv_triton, Q, K, V, 64, 0.1)
    return {
        "attention": _attend,
        "attention float32": lambda: _attend(Q.float()),
        "attention of 64 channels": lambda: _attend(Q[..., :64].half()),
        "attention with means": lambda: _attend(compensate=True),
        "attention with tangents": lambda: _attend(compensate=True, tangents=TANGENTS),
        "attention with masses": lambda: _attend(stats_lse=LSE),
        "attention of moved heads": lambda: _attend(moved=moved),
        **running,
        # Its products of 8-bit floats need an Ada or newer.
        **({"attention of 8 bits": _attend_8bit, "quantize": quantize} if capability >= 89 else {}),
        "ragged attention": lambda: triton_attention.attend_triton(Q, K, V, RAGGED, scale=0.1),
        "ragged attention with means": lambda: triton_attention.attend_triton(
            Q, K, V, RAGGED, scale=0.1, compensate=True, tangents=TANGENTS
        ),
        "block errors": lambda: triton_block_errors.block_errors_triton(
            Q, K, V, means, block_q=64, block_kv=64
        ),
        "kept pairs": lambda: triton_kept_pairs.kept_pairs_triton(MASK),
        "kept pairs of ragged blocks": lambda: triton_kept_pairs.kept_pairs_triton(RAGGED),
        "k-means": lambda: triton_kmeans.kmeans_triton(K, clusters, 1),
        "lists": lambda: triton_lists.compact_lists_triton(KEPT),
        "pack bits": lambda: bits.pack_bits_triton(KEPT),
        "lists from bits": lambda: bits.lists_from_bits_triton(
            torch.zeros(B, H, N, 1, dtype=torch.uint8), N, backwards=True
        ),
        "gather": lambda: triton_permute.gather_rows([Q, K], [ORDER.expand(B, H, S)] * 2),
        "scatter": lambda: triton_permute.scatter_rows(Q, ORDER.expand(B, H, S)),
        "pooled scores": lambda: _score(Q, config),
        "pooled scores float32": lambda: _score(Q.float(), None),
        "pooled means": lambda: triton_pooling.pooled_means_triton(
            Q, offsets, order=ORDER, variances=True
        ),
        **pools,
        "drop tiles": _drop_tiles,
        "sampled rows": lambda: triton_sampled_rows.attend_sampled_rows_triton(
            Q[:, :, :8], K, V, torch.ones(2, 8, S, dtype=torch.bool)
        ),
        "sort": lambda: triton_sort.sort_by_label_triton(ORDER.expand(B, H, S), 40),
        "block mass": lambda: triton_statistics.block_mass_triton(Q, K, LSE, 64, 64, 0.1),
        "row LSE": lambda: triton_statistics.row_lse_triton(Q, K, 0.1),
        **select,
    }


def main(capability: int) -> None:
    """Print bytes of shared memory by case and kernel."""
    taken: dict[str, int] = {}
    compile_only(capability, lambda name, kernel: taken.update({name: kernel.metadata.shared}))
    results: dict[str, dict[str, int] | str] = {}
    for name, launch in _cases(capability).items():
        taken.clear()
        try:
            launch()
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
        else:
            results[name] = dict(taken)
    json.dump({"room": SHARED_MEMORY[capability], "taken": results}, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]))
