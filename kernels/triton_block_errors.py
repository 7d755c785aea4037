"""Triton twin of ``block_errors``: one more pass over the map, given the dense output."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.block_means import KeyValueMeans
from vidsparse.kernels.block_sparse_attention import block_sparse_attention
from vidsparse.kernels.descriptors import heads_descriptor
from vidsparse.kernels.launch import LaunchConfig, architecture, padded_head_size, preferred_blocks
from vidsparse.kernels.triton_attention import LOG2_E, dot_rows, load_rows, tile_rows

# 16-bit inputs, by (architecture family, padded head size). sm90: the largest tiles that spill no
# registers where a tile of keys holds a block; not timed yet.
LAUNCH: dict[tuple[str, int], LaunchConfig] = {
    ("sm90", 64): LaunchConfig(64, 128, 4, 2),
    ("sm90", 128): LaunchConfig(128, 128, 8, 2),
    ("other", 64): LaunchConfig(64, 64, 4, 2),
    ("other", 128): LaunchConfig(64, 64, 4, 2),
}
# float32 multiplies on FMA units out of registers, and holds the output beside the products.
_FLOAT32 = {64: LaunchConfig(64, 32, 8, 2), 128: LaunchConfig(32, 32, 8, 2)}
# Mean keys that are multiplied with at once.
_GROUP = 16
# Weights are 2^15 times too large: float16 holds none above that, and rounds away few below it.
_SHIFT = 15


@triton.jit
def _block_errors_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, k_mean_ptr, v_mean_ptr, log_size_ptr, square_ptr,
    q_stride_b, q_stride_h, q_stride_s, k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s, out_stride_b, out_stride_h, out_stride_s,
    H, S, D, N, scale_log2,
    BLOCK_Q: tl.constexpr, TILE_Q: tl.constexpr, BLOCK_KV: tl.constexpr, TILE_KV: tl.constexpr,
    GROUP: tl.constexpr, SHIFT: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """One program sums the squared errors of TILE_Q queries of one head, for every key block."""
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = head // H, head % H
    TILES: tl.constexpr = (BLOCK_Q + TILE_Q - 1) // TILE_Q
    rows = tile // TILES * BLOCK_Q + tile % TILES * TILE_Q + tl.arange(0, TILE_Q)
    row_inside = rows < tl.minimum((tile // TILES + 1) * BLOCK_Q, S)
    q_ptr += b * q_stride_b + h * q_stride_h
    out_ptr += b * out_stride_b + h * out_stride_h
    if not TMA:
        k_ptr += b * k_stride_b + h * k_stride_h
        v_ptr += b * v_stride_b + h * v_stride_h
    q = load_rows(q_ptr, rows, q_stride_s, row_inside, D, PAD_D, EVEN_D)
    out = load_rows(out_ptr, rows, out_stride_s, row_inside, D, PAD_D, EVEN_D).to(tl.float32)
    # Rows outside weigh nothing, so that all their differences are 0.
    lse = tl.load(lse_ptr + head * S + rows, mask=row_inside, other=float("inf"))
    base = lse * 1.4426950408889634 - SHIFT
    columns, members = tl.arange(0, PAD_D), tl.arange(0, GROUP)
    square_ptr += (head * tl.num_programs(0) + tile) * N
    for first in range(0, N, GROUP):
        group = first + members
        k_mean = load_rows(k_mean_ptr + head * N * D, group, D, group < N, D, PAD_D, EVEN_D)
        log_size = tl.load(log_size_ptr + head * N + group, mask=group < N, other=float("-inf"))
        bias = (log_size * 1.4426950408889634)[None, :] - base[:, None]
        mean_weights = tl.math.exp2(dot_rows(q, k_mean) * scale_log2 + bias)
        for block in range(first, tl.minimum(first + GROUP, N)):
            acc = tl.zeros([TILE_Q, PAD_D], tl.float32)
            mass = tl.zeros([TILE_Q], tl.float32)
            last = tl.minimum((block + 1) * BLOCK_KV, S)
            # Folded away where one tile holds a block: the loop around it is pipelined then.
            for part in range(0, BLOCK_KV, TILE_KV):
                start = block * BLOCK_KV + part
                keys = start + tl.arange(0, TILE_KV)
                if TMA:
                    k = k_ptr.load([head.to(tl.int32), start, 0]).reshape(TILE_KV, PAD_D)
                    v = v_ptr.load([head.to(tl.int32), start, 0]).reshape(TILE_KV, PAD_D)
                else:
                    k = load_rows(k_ptr, keys, k_stride_s, keys < last, D, PAD_D, EVEN_D)
                    v = load_rows(v_ptr, keys, v_stride_s, keys < last, D, PAD_D, EVEN_D)
                scores = dot_rows(q, k)
                if start + TILE_KV > last:
                    scores = tl.where((keys < last)[None, :], scores, float("-inf"))
                weights = tl.math.exp2(scores * scale_log2 - base[:, None]).to(v.dtype)
                # The mass of the weights as rounded: then what rounding changes is weighed with
                # v - out, not with v.
                mass += tl.sum(weights.to(tl.float32), 1)
                acc = tl.dot(weights, v, acc, input_precision="ieee")
            own = tl.sum(tl.where((group == block)[None, :], mean_weights, 0.0), 1)
            v_mean = tl.load(
                v_mean_ptr + (head * N + block) * D + columns, mask=columns < D, other=0.0
            ).to(tl.float32)
            # In this order: the other way round, registers spill.
            moved = acc + (own - mass)[:, None] * out
            moved -= own[:, None] * v_mean[None, :]
            tl.store(square_ptr + block, tl.sum(tl.sum(moved * moved, 1), 0))


def block_errors_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    means: KeyValueMeans,
    *,
    block_q: int,
    block_kv: int,
    config: LaunchConfig | None = None,
) -> Tensor:
    """Return the (B, H, Nq, Nkv) float32 errors; see ``block_errors.block_errors``.

    Args:
        q: (B, H, S, D) queries, bfloat16, float16 or float32, last dimension contiguous.
        k: (B, H, S, D) keys, same dtype.
        v: (B, H, S, D) values, same dtype.
        means: what stands for each key block, same dtype.
        block_q: query tokens per block.
        block_kv: key tokens per block.
        config: launch configuration, by default the table's.
    """
    B, H, S, D = q.shape
    out, lse = _dense_attention(q, k, v)
    PAD_D, config = padded_head_size(D), config or _config(q)
    Nq, Nkv = triton.cdiv(S, block_q), triton.cdiv(S, block_kv)
    tile_q = tile_rows(config.block_q, block_q)
    tile_kv = max(16, min(config.block_kv, triton.next_power_of_2(block_kv)))
    tiles = triton.cdiv(block_q, tile_q)
    warps = max(4, config.num_warps * tile_q // config.block_q)
    squares = torch.empty(B, H, Nq * tiles, Nkv, dtype=torch.float32, device=q.device)
    tma = [heads_descriptor(x, tile_kv, PAD_D) for x in (k, v)]
    if None in tma:
        tma = []
    _block_errors_kernel[(Nq * tiles, B * H)](
        q, *(tma or (k, v)), out, lse, means.k.contiguous(), means.v.contiguous(),
        means.log_size.expand(B, H, -1).contiguous(), squares,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        H, S, D, Nkv, D**-0.5 * LOG2_E,
        BLOCK_Q=block_q, TILE_Q=tile_q, BLOCK_KV=block_kv, TILE_KV=tile_kv, GROUP=_GROUP,
        SHIFT=_SHIFT, PAD_D=PAD_D, EVEN_D=PAD_D == D, TMA=bool(tma), num_warps=warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    rows = (S - torch.arange(0, S, block_q, device=q.device)).clamp_(max=block_q)
    errors: Tensor = (squares.unflatten(2, (Nq, tiles)).sum(3) / rows[:, None]).sqrt_()
    return errors.mul_(2.0**-_SHIFT)


def _config(q: Tensor) -> LaunchConfig:
    PAD_D = max(64, padded_head_size(q.shape[3]))
    if q.dtype is torch.float32:
        return _FLOAT32[PAD_D]
    arch = architecture(q.device)
    return LAUNCH[arch if (arch, PAD_D) in LAUNCH else "other", PAD_D]


def _dense_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output in q's dtype and the contiguous LSE."""
    S = q.shape[2]
    block_q, block_kv = preferred_blocks(q.device)
    mask = BlockMask.full(block_q=block_q, block_kv=block_kv, seq_q=S, seq_kv=S, device=q.device)
    output = block_sparse_attention(q, k, v, mask)
    if output.lse is None:
        raise RuntimeError("block_sparse_attention returned no LSE")
    return output.out, output.lse.contiguous()
