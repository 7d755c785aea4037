"""Triton twin of ``tile_drop``: one pass over the statistics."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.tile_drop import TileScales

# Bytes of a row handled at once.
_BYTES = 64


@triton.jit
def _drop_kernel(
    bits_ptr, stats_ptr, forced_ptr, q_scale_ptr, kv_scale_ptr, held_scale_ptr, new_ptr, held_ptr,
    threshold, Nq, N, num_bytes, GAPS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """One program updates one row of tiles."""
    row = tl.program_id(0).to(tl.int64)
    eight = tl.arange(0, 8)[None, :]
    q_scale = tl.load(q_scale_ptr + row)
    held_scale = tl.load(held_scale_ptr + row)
    held_sum = tl.zeros([BYTES], tl.float32)
    for start in range(0, num_bytes, BYTES):
        places = start + tl.arange(0, BYTES)
        columns = places[:, None] * 8 + eight
        inside = columns < N
        byte = tl.load(bits_ptr + row * num_bytes + places, mask=places < num_bytes, other=0)
        kept = ((byte.to(tl.int32)[:, None] >> eight) & 1) != 0
        stats = tl.load(stats_ptr + row * N + columns, mask=inside, other=0.0)
        forced = tl.load(forced_ptr + row % Nq * N + columns, mask=inside, other=0) != 0
        kv_scale = tl.load(kv_scale_ptr + columns, mask=inside, other=0.0)
        if GAPS:
            weight = stats
            held = tl.minimum(tl.math.exp2(stats) * kv_scale, 1.0)
        else:
            weight = stats * q_scale * kv_scale
            held = stats * held_scale
        dropped = kept & (weight <= threshold) & (forced == 0) & inside
        held_sum += tl.sum(tl.where(dropped, held, 0.0), 1)
        stay = (kept & (dropped == 0)).to(tl.int32)
        new = tl.sum(stay << eight, 1).to(tl.uint8)
        tl.store(new_ptr + row * num_bytes + places, new, mask=places < num_bytes)
    tl.store(held_ptr + row, tl.sum(held_sum, 0))


def drop_light_tiles_triton(
    bits: Tensor, stats: Tensor, forced: Tensor, threshold: float, scales: TileScales
) -> tuple[Tensor, Tensor]:
    """Return new bits and what was dropped; see ``tile_drop.drop_light_tiles``."""
    bits, stats, forced = bits.contiguous(), stats.contiguous(), forced.contiguous()
    new, held = torch.empty_like(bits), torch.empty(stats.shape[:3], device=stats.device)
    N, num_bytes = stats.shape[-1], bits.shape[-1]
    size = min(_BYTES, triton.next_power_of_2(num_bytes))
    _drop_kernel[(held.numel(),)](
        bits, stats, forced.view(torch.uint8), scales.q.contiguous(), scales.kv.contiguous(),
        scales.held.contiguous(), new, held,
        float(threshold), stats.shape[-2], N, num_bytes, GAPS=scales.gaps, BYTES=size, num_warps=2,
    )  # fmt: skip
    return new, held
