"""Launch the Gluon kernels: what they can take, descriptors, and tile shapes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.backends import has_triton, triton_is_interpreted
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.descriptors import gluon_descriptor, head_groups
from vidsparse.kernels.launch import architecture, padded_head_size
from vidsparse.kernels.moved_heads import MovedHeads
from vidsparse.kernels.running_statistics import RunningStat

_LOG2_E = 1.4426950408889634
_GROUP_ROWS = 64
_GROUP_WARPS = 4
# Variable blocks that one program of the list builders can handle.
_MAX_BLOCKS = 4096


@dataclass(frozen=True)
class GluonConfig:
    """Shape of one CTA.

    Args:
        groups: consumer warpgroups of 64 query rows.
        tile_kv: keys of one step.
        stages: depth of the K and V rings.
        pingpong: let warpgroups take turns in issuing matrix products.
        registers: registers per consumer thread.
        max_registers: budget per thread over all warps.
        cubic_share: every n-th exponential is computed on the FMA units, for n = 4 or 8; 0: none.
        fixed: weigh bfloat16 rows against the maximum of their first tile; rows whose logits rise
            by more than 69 above it are attended to again with a running maximum.
    """

    groups: int
    tile_kv: int
    stages: int
    pingpong: bool
    registers: int
    max_registers: int
    cubic_share: int = 0
    fixed: bool = False


# By (padded head size, rows that divide the mask's query blocks); fastest on an H100 of
# `python -m vidsparse.profiling.tune_kernels CASE --density 0.25 --density 0.1`, with CASE
# wan14b-720p-128, cogvideox1.5-d64 for (64, 192), and small-d64 for (64, 64), which takes blocks of
# 128 rows too: two CTAs of one warpgroup are faster there than one of two. On an H200 the third
# stage of (128, 128) took 1.5 to 3 % off.
GLUON_CONFIGS: dict[tuple[int, int], GluonConfig] = {
    (128, 128): GluonConfig(2, 128, 3, False, 240, 168, fixed=True),
    (128, 64): GluonConfig(1, 64, 2, False, 232, 128),
    (64, 192): GluonConfig(3, 128, 4, False, 160, 128, 8, fixed=True),
    (64, 64): GluonConfig(1, 128, 2, False, 232, 128, 8, fixed=True),
}


# Variable blocks: (keys per chunk, CTA shape) by padded head size; 128 from
# `python -m vidsparse.profiling.tune_kernels wan14b-720p-ragged` on an H100.
RAGGED_CONFIGS: dict[int, tuple[int, GluonConfig]] = {
    128: (16, GluonConfig(2, 128, 2, False, 240, 168, fixed=True)),
    64: (16, GluonConfig(2, 128, 4, False, 240, 168, fixed=True)),
}


@cache
def _has_gluon() -> bool:
    if not has_triton() or triton_is_interpreted():
        return False
    try:
        return importlib.util.find_spec("triton.experimental.gluon.nvidia.hopper") is not None
    except ModuleNotFoundError:
        return False


def hopper_reasons(**tensors: Tensor) -> list[str]:
    """List why the Gluon kernels cannot take (B, H, S, D) tensors, or cannot run here at all."""
    first = next(iter(tensors.values()))
    if architecture(first.device) != "sm90":
        return [f"the Gluon kernels need an H100 or H200 (sm_90); {first.device} is not one"]
    if not _has_gluon():
        return ["this triton has no Gluon for Hopper; install triton 3.6"]
    reasons = []
    if first.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(f"dtype {first.dtype}; use bfloat16 or float16")
    if first.shape[-1] > 128 or first.shape[-1] % 8:
        reasons.append(f"head size {first.shape[-1]}; use a multiple of 8 up to 128")
    for name, x in tensors.items():
        if x.data_ptr() % 16 or any(
            s % 8 for s, n in zip(x.stride(), x.shape, strict=True) if n > 1 and s != 1
        ):
            reasons.append(f"{name} has strides {x.stride()}; rows must start at 16-byte addresses")
    return reasons


def gluon_reasons(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | RaggedBlockMask) -> list[str]:
    """List why the Gluon kernels cannot take these inputs."""
    reasons = hopper_reasons(q=q, k=k, v=v)
    if isinstance(mask, RaggedBlockMask):
        if max(mask.mask.shape[2:]) > _MAX_BLOCKS:
            reasons.append(f"{tuple(mask.mask.shape[2:])} blocks; use at most {_MAX_BLOCKS}")
    elif choose_config(q.shape[-1], mask) is None:
        reasons.append(
            f"blocks of {mask.block_q} x {mask.block_kv} tokens; use a multiple of 64 queries and "
            "16, 32, 64 or 128 keys"
        )
    return reasons


def choose_config(D: int, mask: BlockMask) -> GluonConfig | None:
    """Return the tallest CTA that the mask's query blocks can be cut into, or None."""
    head = max(64, padded_head_size(D))
    fitting = [
        config
        for (size, rows), config in GLUON_CONFIGS.items()
        if size == head
        and mask.block_q % rows == 0
        and (config.tile_kv % mask.block_kv == 0 and mask.block_kv >= 16)
    ]
    return max(fitting, key=lambda c: c.groups, default=None)


def attend_gluon(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    *,
    scale: float,
    config: GluonConfig | None = None,
    stats_lse: Tensor | None = None,
    running: RunningStat | None = None,
    compensate: bool = False,
    tangents: Tensor | None = None,
    moved: MovedHeads | None = None,
) -> AttentionOutput:
    """Attend to the kept blocks; inputs as in ``block_sparse_attention``.

    Args:
        q: (B, H, Sq, D) bfloat16 or float16.
        k: (B, H, Skv, D).
        v: (B, H, Skv, D).
        mask: kept blocks; with ``running`` a partial last block must be last in the lists.
        scale: factor on the logits.
        config: CTA shape, by default the table's.
        stats_lse: (B, H, Sq) float32 LSE that block masses are taken against, or None for none;
            needs blocks of ``config.tile_kv`` keys.
        running: statistic of each kept block instead, lists visited from their end; needs the
            same.
        compensate: let skipped blocks count through their means.
        tangents: (B, H, Nkv, D) queries that these means are taken for, or None.
        moved: heads with an order of their own, or None; neither with means nor with statistics.
    """
    from vidsparse.kernels.triton_block_means import mean_tiles
    from vidsparse.kernels.triton_retry import attend_again
    from vidsparse.kernels.triton_tile_statistics import dense_stats, stats_kind

    config = choose_config(q.shape[-1], mask) if config is None else config
    if config is None:
        raise ValueError(f"no Gluon configuration fits blocks of {mask.block_q} x {mask.block_kv}")
    # The layout of q carries over, so that a caller's transposed view stays one.
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    tensors = [q, k, v, out, lse, mask.kv_num_blocks, mask.kv_indices]
    means = mean_tiles(k, v, mask, scale, tangents) if compensate else None
    # Without compensation the kernel never touches the last four.
    tensors += (k, v, lse, lse) if means is None else means
    stats = stats_kind(stats_lse, running)
    if not stats:
        if moved is not None:
            # The kernel never touches the first two.
            heads = moved.heads.view(torch.uint8)
            tensors += (lse, lse, heads, moved.k, moved.v, moved.q_order)
        # TODO: one launch for any strides once rank-4 descriptors are measured to cost nothing.
        for batch in head_groups(*tensors):
            _launch(batch, mask, scale, config, stats, compensate)
        if _is_fixed(config, q, stats):
            attend_again(q, k, v, out, lse, mask, scale, means=means, moved=moved)
        return AttentionOutput(out, lse)
    tiles = mask.num_q_blocks * (mask.block_q // (config.groups * _GROUP_ROWS))
    parts = torch.empty(
        *q.shape[:2], tiles, mask.num_kv_blocks, config.groups * _GROUP_WARPS,
        dtype=torch.float32, device=q.device,
    )  # fmt: skip
    reference = lse if stats_lse is None else stats_lse.contiguous()
    for batch in head_groups(*tensors, reference, parts):
        _launch(batch, mask, scale, config, stats, compensate)
    if _is_fixed(config, q, stats):
        attend_again(q, k, v, out, lse, mask, scale, (reference, parts), means)
    return AttentionOutput(out, lse, dense_stats(parts, mask, running))


def _is_fixed(config: GluonConfig, q: Tensor, stats: int) -> bool:
    # float16 weights have no room above the reference; running statistics need the maximum.
    return config.fixed and q.dtype is torch.bfloat16 and stats < 2


def _launch(
    tensors: tuple[Tensor, ...],
    mask: BlockMask,
    scale: float,
    config: GluonConfig,
    stats: int,
    compensate: bool,
) -> None:
    from vidsparse.kernels.gluon_attention import attention_kernel
    from vidsparse.kernels.triton_lists import launch_order

    q, k, v, out, lse, counts, indices, k_mean, v_mean, bias, num_means = tensors[:11]
    # Without statistics the kernel never touches these two.
    stats_lse, parts = tensors[11:13] or (lse, lse)
    moved = tensors[13:]
    heads, Sq, D = q.shape
    size = max(64, padded_head_size(D))
    tiles_per_block = mask.block_q // (config.groups * _GROUP_ROWS)
    stride_h = 0 if len(counts) == 1 else counts.stride(0)
    order = launch_order(counts, heads, stride_h, tiles_per_block)
    rows, chunk = [1, _GROUP_ROWS, size], [1, mask.block_kv, size]
    tile = [1, config.tile_kv, size]
    # None leaves an argument, and what the compiler would learn about it, out of the kernel.
    follow: list[Any] = [None] * 5
    strides: list[int | None] = [None] * 5
    if moved:
        moved_heads, k_moved, v_moved, q_order = moved
        copies = (gluon_descriptor(x, chunk) for x in (k_moved, v_moved))
        follow = [moved_heads, *copies, q_order, q]
        strides = [*q.stride()[:2], *out.stride()[:2], D]
    attention_kernel[(len(order),)](
        gluon_descriptor(q, rows), gluon_descriptor(k, chunk), gluon_descriptor(v, chunk),
        out if moved else gluon_descriptor(out, rows),
        lse, order, counts, indices, stats_lse, parts,
        gluon_descriptor(k_mean, tile), gluon_descriptor(v_mean, tile), bias, num_means, *follow,
        stride_h, scale * _LOG2_E, Sq, k.shape[1],
        mask.num_q_blocks, mask.num_kv_blocks, tiles_per_block,
        bias.shape[-1], *strides,
        TILE_KV=config.tile_kv, CHUNK=mask.block_kv, GROUPS=config.groups, STAGES=config.stages,
        PINGPONG=config.pingpong, REGISTERS=config.registers, CUBIC_SHARE=config.cubic_share,
        STATS=stats, MEANS=compensate, FIXED=_is_fixed(config, q, stats), MOVED=bool(moved),
        num_warps=4, maxnreg=config.max_registers,
    )  # fmt: skip


def attend_ragged_gluon(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: RaggedBlockMask,
    *,
    scale: float,
    config: tuple[int, GluonConfig] | None = None,
    compensate: bool = False,
    tangents: Tensor | None = None,
) -> AttentionOutput:
    """Attend to the kept variable blocks; inputs as in ``block_sparse_attention``.

    Args:
        q: (B, H, Sq, D) bfloat16 or float16.
        k: (B, H, Skv, D).
        v: (B, H, Skv, D); finite: keys beside a kept block are multiplied by 0.
        mask: kept blocks.
        scale: factor on the logits.
        config: keys per chunk and CTA shape, by default the table's.
        compensate: let skipped blocks count through their means.
        tangents: (B, H, Nkv, D) queries that these means are taken for, or None.
    """
    from vidsparse.kernels.triton_block_means import mean_tiles
    from vidsparse.kernels.triton_ragged_lists import chunk_lists, ordered_query_tiles
    from vidsparse.kernels.triton_retry import attend_ragged_again

    size = max(64, padded_head_size(q.shape[-1]))
    chunk, shape = RAGGED_CONFIGS[size] if config is None else config
    mask = _for_all_heads(mask, q.shape[:2])
    lists = chunk_lists(mask, chunk, wide=shape.tile_kv)
    rows = shape.groups * _GROUP_ROWS
    tiles = ordered_query_tiles(mask.q_offsets, lists, q.shape[2], rows, shape.tile_kv // chunk)
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    # One integer for each tile.
    lengths = lists.lengths.view({8: torch.int64, 4: torch.int32}[shape.tile_kv // chunk])
    counts = (lists.num_wide, lists.num_full, lists.num_chunks)
    meta = (*tiles, *counts, lists.wide, lists.entries, lengths)
    means = mean_tiles(k, v, mask, scale, tangents) if compensate else None
    # Without compensation the kernel never touches these four.
    unused = (k, v, lse, lse)
    for tensors in head_groups(q, k, v, out, lse, *meta, *(unused if means is None else means)):
        _launch_ragged(tensors, scale, chunk, shape, compensate)
    if _is_fixed(shape, q, 0):
        attend_ragged_again(
            q, k, v, out, lse, lists, tiles, scale, rows=rows, wide=shape.tile_kv, means=means
        )
    return AttentionOutput(out, lse)


def _for_all_heads(mask: RaggedBlockMask, lead: torch.Size) -> RaggedBlockMask:
    q_offsets, kv_offsets, kept = (
        x.expand(*lead, *x.shape[2:]).contiguous()
        for x in (mask.q_offsets, mask.kv_offsets, mask.mask)
    )
    return RaggedBlockMask(q_offsets, kv_offsets, kept, mask.seq_q, mask.seq_kv)


def _launch_ragged(
    tensors: tuple[Tensor, ...], scale: float, chunk: int, shape: GluonConfig, compensate: bool
) -> None:
    from vidsparse.kernels.gluon_ragged_attention import ragged_attention_kernel

    q, k, v, out, lse, block, first, end = tensors[:8]
    num_wide, num_full, num_chunks, wide, entries, lengths = tensors[8:14]
    k_mean, v_mean, bias, num_means = tensors[14:]
    D = q.shape[-1]
    size = max(64, padded_head_size(D))
    boxes, tile = [1, chunk, size], [1, shape.tile_kv, size]
    ragged_attention_kernel[(block.numel(),)](
        gluon_descriptor(q, [1, _GROUP_ROWS, size]),
        gluon_descriptor(k, boxes), gluon_descriptor(v, boxes),
        gluon_descriptor(k, tile), gluon_descriptor(v, tile), out, lse, block, first, end,
        num_wide, num_full, num_chunks, wide, entries, lengths,
        gluon_descriptor(k_mean, tile), gluon_descriptor(v_mean, tile), bias, num_means,
        bias.shape[-1], out.stride(0), out.stride(1),
        wide.shape[-1], entries.shape[-1], num_chunks.shape[-1], block.shape[-1],
        scale * _LOG2_E, q.shape[1], k.shape[1], D,
        GROUPS=shape.groups, STAGES=shape.stages, REGISTERS=shape.registers,
        CUBIC_SHARE=shape.cubic_share, MEANS=compensate, FIXED=_is_fixed(shape, q, 0),
        num_warps=4, maxnreg=shape.max_registers,
    )  # fmt: skip
