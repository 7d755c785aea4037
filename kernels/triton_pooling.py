"""Triton twin of ``pooling``."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Token rows that one program holds at once.
_ROWS = 32
# Token rows that one program moves.
_MOVED_ROWS = 64


@triton.jit
def _pooled_means_kernel(
    x_ptr, offsets_ptr, order_ptr, means_ptr, variances_ptr, stride_b, stride_h, stride_s, H, N, D,
    ROWS: tl.constexpr, PAD_D: tl.constexpr, ORDERED: tl.constexpr, VARIANCES: tl.constexpr,
):  # fmt: skip
    """One program averages one block of one head."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x_ptr += (head // H) * stride_b + (head % H) * stride_h
    first, last = tl.load(offsets_ptr + block), tl.load(offsets_ptr + block + 1)
    columns = tl.arange(0, PAD_D)
    # Summed over the rows once, at the end: each sum across rows waits for all warps.
    total = tl.zeros([ROWS, PAD_D], tl.float32)
    total_squares = tl.zeros([ROWS, PAD_D], tl.float32)
    for start in range(first, last, ROWS):
        places = start + tl.arange(0, ROWS)
        inside = places < last
        rows = places
        if ORDERED:
            rows = tl.load(order_ptr + places, mask=inside, other=0)
        address = x_ptr + rows.to(tl.int64)[:, None] * stride_s + columns[None, :]
        x = tl.load(address, mask=inside[:, None] & (columns < D)[None, :], other=0.0)
        x = x.to(tl.float32)
        total += x
        if VARIANCES:
            total_squares += x * x
    count = tl.maximum(last - first, 1).to(tl.float32)
    target = (head * N + block) * D + columns
    mean = tl.sum(total, 0) / count
    tl.store(means_ptr + target, mean, mask=columns < D)
    if VARIANCES:
        variance = tl.maximum(tl.sum(total_squares, 0) / count - mean * mean, 0.0)
        tl.store(variances_ptr + target, variance, mask=columns < D)


def pooled_means_triton(
    x: Tensor, offsets: Tensor, *, order: Tensor | None, variances: bool
) -> tuple[Tensor, Tensor | None]:
    """Average the tokens of each block; see ``pooling.pooled_means``."""
    B, H, _, D = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    N = offsets.numel() - 1
    means = torch.empty(B, H, N, D, dtype=torch.float32, device=x.device)
    spread = torch.empty_like(means) if variances else None
    _pooled_means_kernel[(N, B * H)](
        x, offsets, offsets if order is None else order,
        means, means if spread is None else spread, *x.stride()[:3], H, N, D, ROWS=_ROWS,
        PAD_D=triton.next_power_of_2(D), ORDERED=order is not None, VARIANCES=variances,
        num_warps=4,
    )  # fmt: skip
    return means, spread


@triton.jit
def _permute_and_pool_kernel(
    x_ptr, order_ptr, y_ptr, means_ptr, variances_ptr, stride_b, stride_h, stride_s, H, S, N, D,
    UNIT: tl.constexpr, ROWS: tl.constexpr, PAD_D: tl.constexpr,
    CHANNELS: tl.constexpr, TOTAL: tl.constexpr,
):  # fmt: skip
    """One program moves ROWS tokens of one head and averages ROWS / UNIT runs of them."""
    head = tl.program_id(1).to(tl.int64)
    x_ptr += (head // H) * stride_b + (head % H) * stride_h
    places = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = places < S
    tokens = tl.load(order_ptr + places, mask=inside, other=0).to(tl.int64)
    # Orders out of range would leave the tensor.
    read = inside & (tokens >= 0) & (tokens < S)
    columns = tl.arange(0, PAD_D)
    keep = (columns < D)[None, :]
    x = tl.load(
        x_ptr + tokens[:, None] * stride_s + columns[None, :], mask=read[:, None] & keep, other=0.0
    )
    target = (head * S + places)[:, None] * D + columns[None, :]
    tl.store(y_ptr + target, x, mask=inside[:, None] & keep)
    RUNS: tl.constexpr = ROWS // UNIT
    runs = tl.program_id(0) * RUNS + tl.arange(0, RUNS)
    count = tl.maximum(tl.minimum(S - runs * UNIT, UNIT), 1).to(tl.float32)
    x = x.to(tl.float32).reshape(RUNS, UNIT, PAD_D)
    target = (head * N + runs)[:, None] * D + columns[None, :]
    keep &= (runs < N)[:, None]
    means = tl.sum(x, 1) / count[:, None]
    tl.store(means_ptr + target, means.to(means_ptr.dtype.element_ty), mask=keep)
    if CHANNELS or TOTAL:
        # Rows past the end are 0, not the mean.
        x = tl.where(inside.reshape(RUNS, UNIT, 1), x - means[:, None, :], 0.0)
        variances = tl.sum(x * x, 1) / count[:, None]
        if TOTAL:
            total = tl.sum(variances, 1)
            tl.store(variances_ptr + head * N + runs, total, mask=runs < N)
        else:
            variances = variances.to(variances_ptr.dtype.element_ty)
            tl.store(variances_ptr + target, variances, mask=keep)


def permute_and_pool_triton(
    x: Tensor,
    order: Tensor,
    unit: int,
    variances: str | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Move tokens and average runs of them; see ``pooling.permute_and_pool``."""
    B, H, S, D = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    N = triton.cdiv(S, unit)
    tokens = torch.empty(B, H, S, D, dtype=x.dtype, device=x.device)
    means = torch.empty(B, H, N, D, dtype=dtype, device=x.device)
    spread = None
    if variances == "total":
        spread = torch.empty(B, H, N, dtype=torch.float32, device=x.device)
    elif variances == "channels":
        spread = torch.empty_like(means)
    rows = max(unit, _MOVED_ROWS)
    # Variances are two sums over rows more, whose warps meet.
    warps = rows // (16 if variances is None else 32)
    _permute_and_pool_kernel[(triton.cdiv(S, rows), B * H)](
        x, order, tokens, means, means if spread is None else spread, *x.stride()[:3], H, S, N, D,
        UNIT=unit, ROWS=rows, PAD_D=triton.next_power_of_2(D),
        CHANNELS=variances == "channels", TOTAL=variances == "total",
        num_warps=warps,
    )  # fmt: skip
    return tokens, means, spread
