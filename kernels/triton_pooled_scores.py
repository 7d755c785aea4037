"""Triton twin of ``pooled_scores``: two passes over the mean keys, no map of pooled queries."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.launch import padded_head_size
from vidsparse.kernels.pooled_scores import spread_dtype
from vidsparse.kernels.triton_attention import online_softmax_update


class ScoresConfig(NamedTuple):
    """How a program is cut: pooled queries, mean keys of one step, warps, stages in flight."""

    rows: int
    columns: int
    warps: int
    stages: int


# The fastest of 14 tried on an H200; its 161 KiB of shared memory are more than an Ada has.
HOPPER = ScoresConfig(128, 64, 8, 3)
SMALLER = ScoresConfig(64, 64, 4, 2)
# float32 rows take twice the shared memory.
_FLOAT32 = ScoresConfig(64, 32, 4, 2)


@triton.jit
def _load(ptr, rows, count, D, PAD_D: tl.constexpr):
    columns = tl.arange(0, PAD_D)
    keep = (rows < count)[:, None] & (columns < D)[None, :]
    return tl.load(ptr + rows[:, None] * D + columns[None, :], mask=keep, other=0.0)


@triton.jit
def _log2_sizes(log_size_ptr, columns, N):
    """Return base-2 logarithms of the sizes of key blocks, -inf past the last one."""
    sizes = tl.load(log_size_ptr + columns, mask=columns < N, other=float("-inf"))
    return sizes * 1.4426950408889634


@triton.jit
def _pooled_scores_kernel(
    q_ptr, rows_ptr, k_ptr, variance_ptr, weights_ptr, centre_ptr, log_size_ptr,
    mass_ptr, spread_ptr, stride_b, stride_h, stride_s, weight_stride, H, M, N, D, Nq, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PAD_D: tl.constexpr,
    CHOSEN: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """One program scores all key blocks for ROWS / GROUP query blocks of one head."""
    head = tl.program_id(1).to(tl.int64)
    q_ptr += head // H * stride_b + head % H * stride_h
    k_ptr += head * N * D
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PAD_D)
    place = rows.to(tl.int64)
    if CHOSEN:
        place = tl.load(rows_ptr + rows, mask=rows < M, other=0).to(tl.int64)
    keep = (rows < M)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + place[:, None] * stride_s + d[None, :], mask=keep, other=0.0)
    scale_log2 = scale * 1.4426950408889634
    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    for start in range(0, N, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        k = _load(k_ptr, columns, N, D, PAD_D)
        scores = tl.dot(q, k.T, input_precision="tf32") * scale_log2
        scores += _log2_sizes(log_size_ptr, columns, N)[None, :]
        _, _, row_max, row_sum = online_softmax_update(scores, row_max, row_sum, 1.0)
    # Rows past the end count nothing, so that a smaller last group is averaged right.
    BLOCKS: tl.constexpr = ROWS // GROUP
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    members = tl.maximum(tl.minimum(M - block * GROUP, GROUP), 1).to(tl.float32)
    inverse = tl.where(rows < M, 1.0 / row_sum, 0.0)
    if SPREAD:
        centre = tl.load(centre_ptr + head * D + d, mask=d < D, other=0.0).to(tl.float32)
        away = (q.to(tl.float32) - centre[None, :]) * scale
        away = (away * away).to(q.dtype)
        variance_ptr += head * N * D
        weights_ptr += head * weight_stride
    # Key blocks by rows now: the pools of a query block then lie within four threads.
    for start in range(0, N, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        k = _load(k_ptr, columns, N, D, PAD_D)
        scores = tl.dot(k, q.T, input_precision="tf32") * scale_log2
        scores += _log2_sizes(log_size_ptr, columns, N)[:, None]
        weights = tl.math.exp2(scores - row_max[None, :]) * inverse[None, :]
        target = (head * Nq + block)[None, :] * N + columns[:, None]
        inside = (block < Nq)[None, :] & (columns < N)[:, None]
        mass = tl.sum(weights.reshape(COLUMNS, BLOCKS, GROUP), 2) / members[None, :]
        tl.store(mass_ptr + target, mass.to(mass_ptr.dtype.element_ty), mask=inside)
        if SPREAD:
            variance = _load(variance_ptr, columns, N, D, PAD_D)
            weights *= tl.dot(variance, away.T, input_precision="tf32")
            spread = tl.sum(weights.reshape(COLUMNS, BLOCKS, GROUP), 2) / members[None, :]
            factor = tl.load(weights_ptr + columns * (weight_stride > 0), mask=columns < N, other=0)
            spread *= factor[:, None]
            tl.store(spread_ptr + target, spread.to(spread_ptr.dtype.element_ty), mask=inside)


def pooled_scores_triton(
    q: Tensor,
    rows: Tensor | None,
    k: Tensor,
    log_sizes: Tensor,
    variances: Tensor | None,
    weights: Tensor,
    centre: Tensor,
    *,
    group: int,
    config: ScoresConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Score key blocks for pooled queries; see ``pooled_scores.pooled_scores``."""
    B, H, _, D = q.shape
    M = q.shape[2] if rows is None else len(rows)
    N, Nq = k.shape[2], -(-M // group)
    q = q if q.stride(3) == 1 else q.contiguous()
    k = k.to(q.dtype).contiguous()
    mass = torch.empty(B, H, Nq, N, dtype=q.dtype, device=q.device)
    spread = None
    if variances is not None:
        variances = variances.to(q.dtype).contiguous()
        spread = torch.empty(B, H, Nq, N, dtype=spread_dtype(q), device=q.device)
    shared = weights.stride() == (0, 0, 0)
    weights = weights if shared else weights.contiguous()
    config = config or _choose_config(q)
    _pooled_scores_kernel[(triton.cdiv(M, config.rows), B * H)](
        q, log_sizes if rows is None else rows, k, k if variances is None else variances, weights,
        centre.contiguous(), log_sizes.contiguous(), mass, mass if spread is None else spread,
        *q.stride()[:3], 0 if shared else N, H, M, N, D, Nq, D**-0.5, GROUP=group,
        ROWS=config.rows, COLUMNS=config.columns, PAD_D=padded_head_size(D),
        CHOSEN=rows is not None, SPREAD=spread is not None,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return mass, spread


def _choose_config(q: Tensor) -> ScoresConfig:
    if q.element_size() == 4:
        return _FLOAT32
    hopper = q.is_cuda and torch.cuda.get_device_capability(q.device)[0] >= 9
    return HOPPER if hopper else SMALLER
