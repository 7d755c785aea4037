"""Launch the 8-bit Gluon kernel: descriptors and CTA shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.descriptors import gluon_descriptor, head_groups
from vidsparse.kernels.quantize import QuantizedQKV

_GROUP_ROWS = 64
_TILE_KV = 128


@dataclass(frozen=True)
class Gluon8BitConfig:
    """Shape of one CTA.

    Args:
        groups: consumer warpgroups of 64 query rows.
        stages: depth of the K and V rings, of 128 keys each.
        registers: registers per consumer thread.
        max_registers: budget per thread over all warps.
    """

    groups: int
    stages: int
    registers: int
    max_registers: int


# By rows that divide the mask's query blocks; 128: fastest on an H100 of
# `python -m vidsparse.profiling.tune_kernels wan14b-720p-8bit`.
GLUON_8BIT_CONFIGS: dict[int, Gluon8BitConfig] = {
    128: Gluon8BitConfig(2, 2, 240, 168),
    64: Gluon8BitConfig(1, 2, 232, 128),
}


def attend_quantized_gluon(
    x: QuantizedQKV, mask: BlockMask, out: Tensor, config: Gluon8BitConfig | None = None
) -> AttentionOutput:
    """Attend to the kept blocks on Hopper.

    Args:
        x: quantised inputs.
        mask: kept blocks of ``x.block_kv`` keys.
        out: (B, H, Sq, D) bfloat16 or float16, written to.
        config: CTA shape, by default the table's.
    """
    if config is None:
        config = GLUON_8BIT_CONFIGS[128 if mask.block_q % 128 == 0 else 64]
    lse = torch.empty(x.q.shape[:3], dtype=torch.float32, device=out.device)
    tensors = {name: value for name, value in vars(x).items() if isinstance(value, Tensor)}
    tensors |= {"counts": mask.kv_num_blocks, "indices": mask.kv_indices, "out": out, "lse": lse}
    for group in head_groups(*tensors.values()):
        _launch(dict(zip(tensors, group, strict=True)), mask, config)
    return AttentionOutput(out, lse)


def _launch(x: dict[str, Tensor], mask: BlockMask, config: Gluon8BitConfig) -> None:
    from vidsparse.kernels.gluon_attention_8bit import attention_8bit_kernel
    from vidsparse.kernels.triton_lists import launch_order

    heads, Sq, size = x["q"].shape
    counts, chunk = x["counts"], mask.block_kv
    stride_h = 0 if len(counts) == 1 else counts.stride(0)
    tiles_per_block = mask.block_q // (config.groups * _GROUP_ROWS)
    order = launch_order(counts, heads, stride_h, tiles_per_block)
    rows, keys = [1, _GROUP_ROWS, size], [1, chunk, size]
    attention_8bit_kernel[(len(order),)](
        gluon_descriptor(x["q"], rows), gluon_descriptor(x["k"], keys),
        gluon_descriptor(x["v"], [1, size, chunk]), gluon_descriptor(x["out"], rows),
        x["lse"], x["q_scale"], x["lse_shift"], x["k_scale"], x["v_scale"],
        order, counts, x["indices"], stride_h, Sq, mask.seq_kv, x["v"].shape[2],
        mask.num_q_blocks, mask.num_kv_blocks, tiles_per_block,
        TILE_KV=_TILE_KV, CHUNK=chunk, GROUPS=config.groups, STAGES=config.stages,
        REGISTERS=config.registers,
        num_warps=4, maxnreg=config.max_registers,
    )  # fmt: skip
