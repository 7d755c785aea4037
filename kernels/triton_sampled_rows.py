"""Triton twin of ``sampled_rows``: keys are split over programs, their parts merged in torch."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.launch import padded_head_size
from vidsparse.kernels.triton_attention import LOG2_E, load_rows

_ROWS = 64
_KEYS = 64
# Programs of a launch at least, where the keys suffice: two per multiprocessor of an H100.
_PROGRAMS = 264
_LEAST_SPLIT = 1024


@triton.jit
def _sampled_rows_kernel(
    q_ptr, k_ptr, v_ptr, keep_ptr, out_ptr, sum_ptr, max_ptr,
    k_stride_b, k_stride_h, k_stride_s, v_stride_b, v_stride_h, v_stride_s,
    H, R, S, D, mask_size, split_keys, scale_log2,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """One program attends with ROWS queries of one head to one split of the keys, three ways."""
    split, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    row_inside = rows < R
    k_ptr += (head // H) * k_stride_b + (head % H) * k_stride_h
    v_ptr += (head // H) * v_stride_b + (head % H) * v_stride_h
    q = load_rows(q_ptr + head * R * D, rows, D, row_inside, D, PAD_D, EVEN_D)
    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    sum_all = tl.zeros([ROWS], tl.float32)
    sum_one = tl.zeros([ROWS], tl.float32)
    sum_two = tl.zeros([ROWS], tl.float32)
    out_all = tl.zeros([ROWS, PAD_D], tl.float32)
    out_one = tl.zeros([ROWS, PAD_D], tl.float32)
    out_two = tl.zeros([ROWS, PAD_D], tl.float32)
    keep_ptr += rows.to(tl.int64)[:, None] * S
    last = tl.minimum((split + 1) * split_keys, S)
    for start in range(split * split_keys, last, KEYS):
        keys = start + tl.arange(0, KEYS)
        inside = keys < last
        k = load_rows(k_ptr, keys, k_stride_s, inside, D, PAD_D, EVEN_D)
        scores = tl.where(inside[None, :], tl.dot(q, k.T) * scale_log2, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        decay = tl.math.exp2(row_max - new_max)
        weights = tl.math.exp2(scores - new_max[:, None])
        both = row_inside[:, None] & inside[None, :]
        one = tl.load(keep_ptr + keys[None, :], mask=both, other=0)
        two = tl.load(keep_ptr + mask_size + keys[None, :], mask=both, other=0)
        weights_one = tl.where(one != 0, weights, 0.0)
        weights_two = tl.where(two != 0, weights, 0.0)
        v = load_rows(v_ptr, keys, v_stride_s, inside, D, PAD_D, EVEN_D)
        out_all = tl.dot(weights.to(v.dtype), v, out_all * decay[:, None])
        out_one = tl.dot(weights_one.to(v.dtype), v, out_one * decay[:, None])
        out_two = tl.dot(weights_two.to(v.dtype), v, out_two * decay[:, None])
        sum_all = sum_all * decay + tl.sum(weights, 1)
        sum_one = sum_one * decay + tl.sum(weights_one, 1)
        sum_two = sum_two * decay + tl.sum(weights_two, 1)
        row_max = new_max
    # Parts lie as (head, split, way, row, D).
    part = (head * tl.num_programs(0) + split) * 3
    tl.store(max_ptr + (head * tl.num_programs(0) + split) * R + rows, row_max, mask=row_inside)
    tl.store(sum_ptr + part * R + rows, sum_all, mask=row_inside)
    tl.store(sum_ptr + (part + 1) * R + rows, sum_one, mask=row_inside)
    tl.store(sum_ptr + (part + 2) * R + rows, sum_two, mask=row_inside)
    columns = tl.arange(0, PAD_D)
    target = out_ptr + part * R * D + rows[:, None] * D + columns[None, :]
    stored = row_inside[:, None] & (columns < D)[None, :]
    tl.store(target, out_all, mask=stored)
    tl.store(target + R * D, out_one, mask=stored)
    tl.store(target + 2 * R * D, out_two, mask=stored)


def attend_sampled_rows_triton(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Attend densely and under both masks; see ``sampled_rows.attend_sampled_rows``."""
    B, H, R, D = q.shape
    S, PAD_D, device = k.shape[2], padded_head_size(D), q.device
    k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (k, v))
    splits = min(-(-_PROGRAMS // (B * H)), -(-S // _LEAST_SPLIT))
    split_keys = triton.cdiv(triton.cdiv(S, splits), _KEYS) * _KEYS
    splits = triton.cdiv(S, split_keys)
    out = torch.empty(B * H, splits, 3, R, D, dtype=torch.float32, device=device)
    total = torch.empty(B * H, splits, 3, R, dtype=torch.float32, device=device)
    peak = torch.empty(B * H, splits, R, dtype=torch.float32, device=device)
    _sampled_rows_kernel[(splits, B * H, triton.cdiv(R, _ROWS))](
        q.contiguous(), k, v, keep.contiguous().view(torch.int8), out, total, peak,
        *k.stride()[:3], *v.stride()[:3], H, R, S, D, R * S, split_keys, D**-0.5 * LOG2_E,
        ROWS=_ROWS, KEYS=_KEYS, PAD_D=PAD_D, EVEN_D=PAD_D == D, num_warps=8,
    )  # fmt: skip
    share = torch.exp2(peak - peak.amax(1, keepdim=True))[:, :, None]
    total = (total * share).sum(1).clamp(min=torch.finfo(torch.float32).tiny)
    out = (out * share[..., None]).sum(1) / total[..., None]
    return out.view(B, H, 3, R, D).permute(2, 0, 1, 3, 4)
