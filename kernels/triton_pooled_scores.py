"""Triton twin of ``pooled_scores``: two passes over the mean keys, no map of pooled queries."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.launch import padded_head_size
from vidsparse.kernels.triton_attention import online_softmax_update

# Pooled queries of one program, and mean keys of one step.
_ROWS = 64
_COLUMNS = 64


@triton.jit
def _load(ptr, rows, count, D, PAD_D: tl.constexpr):
    columns = tl.arange(0, PAD_D)
    keep = (rows < count)[:, None] & (columns < D)[None, :]
    return tl.load(ptr + rows[:, None] * D + columns[None, :], mask=keep, other=0.0)


@triton.jit
def _logits(
    q, k_ptr, log_size_ptr, start, N, D, scale_log2, COLUMNS: tl.constexpr, PAD_D: tl.constexpr
):  # fmt: skip
    """Return base-2 logits of the rows for COLUMNS mean keys, -inf past the last one."""
    columns = start + tl.arange(0, COLUMNS)
    k = _load(k_ptr, columns, N, D, PAD_D)
    log_size = tl.load(log_size_ptr + columns, mask=columns < N, other=float("-inf"))
    scores = tl.dot(q, k.T, input_precision="tf32")
    return scores * scale_log2 + (log_size * 1.4426950408889634)[None, :]


@triton.jit
def _pooled_scores_kernel(
    q_ptr, k_ptr, variance_ptr, centre_ptr, log_size_ptr, mass_ptr, spread_ptr, M, N, D, Nq, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PAD_D: tl.constexpr,
    SPREAD: tl.constexpr,
):  # fmt: skip
    """One program scores all key blocks for ROWS / GROUP query blocks of one head."""
    head = tl.program_id(1).to(tl.int64)
    q_ptr += head * M * D
    k_ptr += head * N * D
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q = _load(q_ptr, rows, M, D, PAD_D)
    scale_log2 = scale * 1.4426950408889634
    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    for start in range(0, N, COLUMNS):
        scores = _logits(q, k_ptr, log_size_ptr, start, N, D, scale_log2, COLUMNS, PAD_D)
        _, _, row_max, row_sum = online_softmax_update(scores, row_max, row_sum, 1.0)
    # Rows past the end count nothing, so that a smaller last group is averaged right.
    BLOCKS: tl.constexpr = ROWS // GROUP
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    members = tl.maximum(tl.minimum(M - block * GROUP, GROUP), 1).to(tl.float32)
    inverse = tl.where(rows < M, 1.0 / row_sum, 0.0)
    if SPREAD:
        d = tl.arange(0, PAD_D)
        centre = tl.load(centre_ptr + head * D + d, mask=d < D, other=0.0).to(tl.float32)
        away = (q.to(tl.float32) - centre[None, :]) * scale
        away = (away * away).to(q.dtype)
        variance_ptr += head * N * D
    for start in range(0, N, COLUMNS):
        scores = _logits(q, k_ptr, log_size_ptr, start, N, D, scale_log2, COLUMNS, PAD_D)
        weights = tl.math.exp2(scores - row_max[:, None]) * inverse[:, None]
        columns = start + tl.arange(0, COLUMNS)
        target = (head * Nq + block)[:, None] * N + columns[None, :]
        keep = (block < Nq)[:, None] & (columns < N)[None, :]
        mass = tl.sum(weights.reshape(BLOCKS, GROUP, COLUMNS), 1) / members[:, None]
        tl.store(mass_ptr + target, mass.to(mass_ptr.dtype.element_ty), mask=keep)
        if SPREAD:
            variance = _load(variance_ptr, columns, N, D, PAD_D)
            weights *= tl.dot(away, variance.T, input_precision="tf32")
            spread = tl.sum(weights.reshape(BLOCKS, GROUP, COLUMNS), 1) / members[:, None]
            tl.store(spread_ptr + target, spread, mask=keep)


def pooled_scores_triton(
    q: Tensor,
    k: Tensor,
    log_sizes: Tensor,
    variances: Tensor | None,
    centre: Tensor,
    *,
    group: int,
) -> tuple[Tensor, Tensor | None]:
    """Score key blocks for pooled queries; see ``pooled_scores.pooled_scores``."""
    B, H, M, D = q.shape
    N, Nq = k.shape[2], -(-M // group)
    q, k = q.contiguous(), k.to(q.dtype).contiguous()
    mass = torch.empty(B, H, Nq, N, dtype=q.dtype, device=q.device)
    spread = None
    if variances is not None:
        variances = variances.to(q.dtype).contiguous()
        spread = torch.empty(B, H, Nq, N, dtype=torch.float32, device=q.device)
    # float32 rows take twice the shared memory.
    columns = _COLUMNS if q.element_size() == 2 else _COLUMNS // 2
    _pooled_scores_kernel[(triton.cdiv(M, _ROWS), B * H)](
        q, k, k if variances is None else variances, centre.contiguous(), log_sizes.contiguous(),
        mass, mass if spread is None else spread, M, N, D, Nq, D**-0.5, GROUP=group, ROWS=_ROWS,
        COLUMNS=columns, PAD_D=padded_head_size(D), SPREAD=spread is not None, num_warps=4,
        num_stages=2,
    )  # fmt: skip
    return mass, spread
