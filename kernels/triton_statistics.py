"""Triton twins of ``block_statistics`` for blocks of one size."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.descriptors import heads_descriptor
from vidsparse.kernels.launch import padded_head_size, triton_config
from vidsparse.kernels.triton_attention import LOG2_E, load_rows, online_softmax_update


@triton.jit
def _block_mass_kernel(
    q_ptr, k_ptr, lse_ptr, mass_ptr, only_ptr, q_stride_b, q_stride_h, q_stride_s,
    k_stride_b, k_stride_h, k_stride_s, H, Sq, Skv, D, num_q_blocks, num_kv_blocks, scale_log2,
    BLOCK_Q: tl.constexpr, TILE_Q: tl.constexpr, BLOCK_KV: tl.constexpr, TILE_KV: tl.constexpr,
    PARTS: tl.constexpr, TMA: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
    STAGES: tl.constexpr, ONLY: tl.constexpr,
):  # fmt: skip
    """One program sums the weights of one row of blocks of one head."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    # Nested: `and` would load flags that are not there.
    if ONLY:  # noqa: SIM102
        if tl.load(only_ptr + head * num_q_blocks + block) == 0:
            return
    q_ptr += (head // H) * q_stride_b + (head % H) * q_stride_h
    if not TMA:
        k_ptr += (head // H) * k_stride_b + (head % H) * k_stride_h
    rows = block * BLOCK_Q + tl.arange(0, TILE_Q)
    inside = rows < tl.minimum((block + 1) * BLOCK_Q, Sq)
    q = load_rows(q_ptr, rows, q_stride_s, inside, D, PAD_D, EVEN_D)
    lse = tl.load(lse_ptr + head * Sq + rows, mask=inside, other=float("inf")) * 1.4426950408889634
    # Rows outside and rows without keys weigh nothing.
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    target = mass_ptr + (head * num_q_blocks + block) * num_kv_blocks
    total = 0.0
    # One flat loop over the parts of all blocks, so that loads run ahead from block to block.
    for step in tl.range(0, num_kv_blocks * PARTS, num_stages=STAGES):
        offsets = step % PARTS * TILE_KV + tl.arange(0, TILE_KV)
        keys = step // PARTS * BLOCK_KV + offsets
        valid = (keys < Skv) & (offsets < BLOCK_KV)
        if TMA:
            k = k_ptr.load([head.to(tl.int32), step * TILE_KV, 0]).reshape(TILE_KV, PAD_D)
        else:
            k = load_rows(k_ptr, keys, k_stride_s, valid, D, PAD_D, EVEN_D)
        scores = tl.dot(q, k.T, input_precision="ieee")
        weights = tl.math.exp2(scores * scale_log2 - lse[:, None])
        total += tl.sum(tl.where(valid[None, :], weights, 0.0))
        if step % PARTS == PARTS - 1:
            tl.store(target + step // PARTS, total)
            total = 0.0


@triton.jit
def _row_lse_kernel(
    q_ptr, k_ptr, lse_ptr, only_ptr, q_stride_b, q_stride_h, q_stride_s,
    k_stride_b, k_stride_h, k_stride_s, H, Sq, Skv, D, only_block, num_only, scale_log2,
    TILE_Q: tl.constexpr, TILE_KV: tl.constexpr,
    PAD_D: tl.constexpr, EVEN_D: tl.constexpr, STAGES: tl.constexpr, ONLY: tl.constexpr,
):  # fmt: skip
    """One program finds the dense log-sum-exp of TILE_Q queries of one head."""
    head = tl.program_id(1).to(tl.int64)
    q_ptr += (head // H) * q_stride_b + (head % H) * q_stride_h
    k_ptr += (head // H) * k_stride_b + (head % H) * k_stride_h
    rows = tl.program_id(0) * TILE_Q + tl.arange(0, TILE_Q)
    wanted = rows < Sq
    if ONLY:
        flags = only_ptr + head * num_only + rows // only_block
        wanted &= tl.load(flags, mask=wanted, other=0) != 0
        if tl.sum(wanted.to(tl.int32)) == 0:
            return
    q = load_rows(q_ptr, rows, q_stride_s, rows < Sq, D, PAD_D, EVEN_D)
    row_max = tl.full([TILE_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([TILE_Q], tl.float32)
    for start in tl.range(0, Skv, TILE_KV, num_stages=STAGES):
        keys = start + tl.arange(0, TILE_KV)
        k = load_rows(k_ptr, keys, k_stride_s, keys < Skv, D, PAD_D, EVEN_D)
        scores = tl.dot(q, k.T, input_precision="ieee")
        scores = tl.where((keys < Skv)[None, :], scores, float("-inf"))
        _, _, row_max, row_sum = online_softmax_update(scores, row_max, row_sum, scale_log2)
    lse = (row_max + tl.math.log2(row_sum)) * 0.6931471805599453
    tl.store(lse_ptr + head * Sq + rows, lse, mask=wanted)


def block_mass_triton(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    block_q: int,
    block_kv: int,
    scale: float,
    *,
    stages: int = 2,
    widest: int = 128,
    warps: int | None = None,
    only: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the (B, H, Nq, Nkv) float32 mass; see ``block_statistics.block_mass``.

    With ``only``, (B, H, Nq) bool, nothing but the rows of those query blocks is written, to
    ``out``.
    """
    B, H, Sq, D = q.shape
    Skv, PAD_D = k.shape[2], padded_head_size(D)
    Nq, Nkv = triton.cdiv(Sq, block_q), triton.cdiv(Skv, block_kv)
    mass = torch.empty(B, H, Nq, Nkv, dtype=torch.float32, device=q.device) if out is None else out
    tile_kv = max(16, min(widest, triton.next_power_of_2(block_kv)))
    descriptor = heads_descriptor(k, tile_kv, PAD_D) if block_kv % tile_kv == 0 else None
    tile_q = max(16, triton.next_power_of_2(block_q))
    _block_mass_kernel[(Nq, B * H)](
        q, k if descriptor is None else descriptor, lse.contiguous(), mass, _flags(only, mass),
        *q.stride()[:3], *k.stride()[:3],
        H, Sq, Skv, D, Nq, Nkv, scale * LOG2_E,
        BLOCK_Q=block_q, TILE_Q=tile_q, BLOCK_KV=block_kv, TILE_KV=tile_kv,
        PARTS=triton.cdiv(block_kv, tile_kv), TMA=descriptor is not None,
        PAD_D=PAD_D, EVEN_D=PAD_D == D, STAGES=stages, ONLY=only is not None,
        num_warps=warps or (8 if tile_q >= 128 else 4),
    )  # fmt: skip
    return mass


def row_lse_triton(
    q: Tensor,
    k: Tensor,
    scale: float,
    *,
    only: tuple[Tensor, int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the (B, H, Sq) float32 natural log-sum-exp of dense attention.

    With ``only``, (B, H, N) bool and the tokens per entry, nothing but the queries of those blocks
    is written, to ``out``.
    """
    B, H, Sq, D = q.shape
    PAD_D, config = padded_head_size(D), triton_config(q.device, D)
    lse = torch.empty(B, H, Sq, dtype=torch.float32, device=q.device) if out is None else out
    flags, block = (None, 1) if only is None else only
    _row_lse_kernel[(triton.cdiv(Sq, config.block_q), B * H)](
        q, k, lse, _flags(flags, lse), *q.stride()[:3], *k.stride()[:3], H, Sq, k.shape[2], D,
        block, 0 if flags is None else flags.shape[2], scale * LOG2_E,
        TILE_Q=config.block_q, TILE_KV=config.block_kv, PAD_D=PAD_D, EVEN_D=PAD_D == D,
        STAGES=config.num_stages, ONLY=only is not None, num_warps=config.num_warps,
    )  # fmt: skip
    return lse


def _flags(only: Tensor | None, unused: Tensor) -> Tensor:
    return unused if only is None else only.contiguous().view(torch.uint8)
