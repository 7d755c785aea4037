"""Triton twins of ``permute``: row gather and scatter, several tensors per launch."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.launch import padded_head_size

_ROWS = 64


@triton.jit
def _move_rows(
    x_ptr, y_ptr, order_ptr, x_stride_b, x_stride_h, x_stride_s, y_stride_b, y_stride_h,
    y_stride_s, order_stride_b, order_stride_h, b, h, S, D,
    ROWS: tl.constexpr, PAD_D: tl.constexpr, SCATTER: tl.constexpr,
):  # fmt: skip
    positions = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = positions < S
    order_ptr += b * order_stride_b + h * order_stride_h
    tokens = tl.load(order_ptr + positions, mask=inside, other=0).to(tl.int64)
    # Orders out of range would leave the tensor.
    inside &= (tokens >= 0) & (tokens < S)
    sources = positions.to(tl.int64) if SCATTER else tokens
    targets = tokens if SCATTER else positions.to(tl.int64)
    columns = tl.arange(0, PAD_D)
    keep = inside[:, None] & (columns < D)[None, :]
    x_ptr += b * x_stride_b + h * x_stride_h
    y_ptr += b * y_stride_b + h * y_stride_h
    rows = tl.load(x_ptr + sources[:, None] * x_stride_s + columns[None, :], mask=keep)
    tl.store(y_ptr + targets[:, None] * y_stride_s + columns[None, :], rows, mask=keep)


@triton.jit
def _move_rows_kernel(
    x0_ptr, x1_ptr, x2_ptr, y0_ptr, y1_ptr, y2_ptr, order0_ptr, order1_ptr, order2_ptr,
    x0_stride_b, x0_stride_h, x0_stride_s, x1_stride_b, x1_stride_h, x1_stride_s,
    x2_stride_b, x2_stride_h, x2_stride_s, y0_stride_b, y0_stride_h, y0_stride_s,
    y1_stride_b, y1_stride_h, y1_stride_s, y2_stride_b, y2_stride_h, y2_stride_s,
    order0_stride_b, order0_stride_h, order1_stride_b, order1_stride_h,
    order2_stride_b, order2_stride_h, H, S0, S1, S2, D, heads_ptr,
    ROWS: tl.constexpr, PAD_D: tl.constexpr, SCATTER: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """One program moves ROWS tokens of one head of one of three tensors."""
    head = tl.program_id(1).to(tl.int64)
    if SOME:  # noqa: SIM102
        if tl.load(heads_ptr + head) == 0:
            return
    b, h = head // H, head % H
    which = tl.program_id(2)
    if which == 0:
        _move_rows(x0_ptr, y0_ptr, order0_ptr, x0_stride_b, x0_stride_h, x0_stride_s, y0_stride_b,
                   y0_stride_h, y0_stride_s, order0_stride_b, order0_stride_h, b, h, S0, D,
                   ROWS, PAD_D, SCATTER)  # fmt: skip
    elif which == 1:
        _move_rows(x1_ptr, y1_ptr, order1_ptr, x1_stride_b, x1_stride_h, x1_stride_s, y1_stride_b,
                   y1_stride_h, y1_stride_s, order1_stride_b, order1_stride_h, b, h, S1, D,
                   ROWS, PAD_D, SCATTER)  # fmt: skip
    else:
        _move_rows(x2_ptr, y2_ptr, order2_ptr, x2_stride_b, x2_stride_h, x2_stride_s, y2_stride_b,
                   y2_stride_h, y2_stride_s, order2_stride_b, order2_stride_h, b, h, S2, D,
                   ROWS, PAD_D, SCATTER)  # fmt: skip


def gather_rows(
    xs: list[Tensor], orders: list[Tensor], *, heads: Tensor | None = None
) -> list[Tensor]:
    """Permute one to three (B, H, S, D) tensors in one launch; outputs are contiguous.

    Args:
        xs: the tensors.
        orders: (B | 1, H | 1, S) of each.
        heads: (B, H) bool, contiguous, the heads to permute; others are left unwritten. None for
            all.
    """
    ys = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in xs]
    _launch(xs, ys, orders, scatter=False, heads=heads)
    return ys


def scatter_rows(x: Tensor, order: Tensor) -> Tensor:
    """Undo ``gather_rows`` for one tensor."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch([x], [y], [order], scatter=True)
    return y


def _launch(
    xs: list[Tensor],
    ys: list[Tensor],
    orders: list[Tensor],
    *,
    scatter: bool,
    heads: Tensor | None = None,
) -> None:
    B, H, _, D = xs[0].shape
    xs = [x if x.stride(-1) == 1 else x.contiguous() for x in xs]
    orders = [order if order.stride(-1) == 1 else order.contiguous() for order in orders]
    # Missing tensors repeat the first one; the grid never reaches them.
    x3, y3, order3 = ([*ts, ts[0], ts[0]][:3] for ts in (xs, ys, orders))
    longest = max(x.shape[2] for x in xs)
    _move_rows_kernel[(triton.cdiv(longest, _ROWS), B * H, len(xs))](
        *x3, *y3, *order3,
        *(s for x in x3 for s in x.stride()[:3]), *(s for y in y3 for s in y.stride()[:3]),
        *(s for order in order3 for s in shared_strides(order)),
        H, *(x.shape[2] for x in x3), D, xs[0] if heads is None else heads.view(torch.uint8),
        ROWS=_ROWS, PAD_D=padded_head_size(D), SCATTER=scatter, SOME=heads is not None,
        num_warps=4,
    )  # fmt: skip


def shared_strides(x: Tensor) -> tuple[int, int]:
    """Return the strides over B and H of a (B | 1, H | 1, ...) tensor, 0 where shared."""
    b, h = (0 if n == 1 else s for n, s in zip(x.shape[:2], x.stride()[:2], strict=True))
    return b, h
