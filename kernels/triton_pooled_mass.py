"""Triton twin of ``pooled_mass``: two passes over the mean keys, no map of pooled queries."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math

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
def _pooled_mass_kernel(
    q_ptr, k_ptr, log_size_ptr, mass_ptr, q_stride_h, k_stride_h, M, N, D, Nq, scale_log2,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PAD_D: tl.constexpr,
):  # fmt: skip
    """One program averages the softmax rows of ROWS / GROUP query blocks of one head."""
    head = tl.program_id(1).to(tl.int64)
    q_ptr += head * q_stride_h
    k_ptr += head * k_stride_h
    mass_ptr += head * Nq * N
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PAD_D)
    q = tl.load(
        q_ptr + rows[:, None] * D + d[None, :], mask=(rows < M)[:, None] & (d < D)[None, :], other=0
    )
    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    for start in range(0, N, COLUMNS):
        scores = _logits(q, k_ptr, log_size_ptr, start, N, D, scale_log2, COLUMNS, PAD_D)
        _, _, row_max, row_sum = online_softmax_update(scores, row_max, row_sum, 1.0)
    # Rows past the end count nothing, so that a smaller last group is averaged right.
    inverse = tl.where(rows < M, 1.0 / row_sum, 0.0)
    BLOCKS: tl.constexpr = ROWS // GROUP
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    members = tl.maximum(tl.minimum(M - block * GROUP, GROUP), 1).to(tl.float32)
    for start in range(0, N, COLUMNS):
        scores = _logits(q, k_ptr, log_size_ptr, start, N, D, scale_log2, COLUMNS, PAD_D)
        weights = tl.math.exp2(scores - row_max[:, None]) * inverse[:, None]
        mass = tl.sum(weights.reshape(BLOCKS, GROUP, COLUMNS), 1) / members[:, None]
        columns = start + tl.arange(0, COLUMNS)
        tl.store(
            mass_ptr + block.to(tl.int64)[:, None] * N + columns[None, :], mass,
            mask=(block < Nq)[:, None] & (columns < N)[None, :],
        )  # fmt: skip


@triton.jit
def _logits(
    q, k_ptr, log_size_ptr, start, N, D, scale_log2, COLUMNS: tl.constexpr, PAD_D: tl.constexpr
):  # fmt: skip
    """Return base-2 logits of the rows for COLUMNS mean keys, -inf past the last one."""
    columns = start + tl.arange(0, COLUMNS)
    d = tl.arange(0, PAD_D)
    inside = columns < N
    k = tl.load(
        k_ptr + columns[:, None] * D + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0
    )
    log_size = tl.load(log_size_ptr + columns, mask=inside, other=float("-inf"))
    scores = tl.dot(q, k.T, input_precision="tf32")
    return scores * scale_log2 + (log_size * 1.4426950408889634)[None, :]


def pooled_mass_triton(q: Tensor, k: Tensor, log_sizes: Tensor, *, group: int) -> Tensor:
    """Average the attention of pooled queries; see ``pooled_mass.pooled_mass``."""
    B, H, M, D = q.shape
    N, Nq = k.shape[2], -(-M // group)
    q, k = q.contiguous(), k.to(q.dtype).contiguous()
    mass = torch.empty(B, H, Nq, N, dtype=torch.float32, device=q.device)
    _pooled_mass_kernel[(triton.cdiv(M, _ROWS), B * H)](
        q, k, log_sizes.contiguous(), mass, M * D, N * D, M, N, D, Nq,
        D**-0.5 * math.log2(math.e), GROUP=group, ROWS=_ROWS, COLUMNS=_COLUMNS,
        PAD_D=padded_head_size(D), num_warps=4,
    )  # fmt: skip
    return mass
