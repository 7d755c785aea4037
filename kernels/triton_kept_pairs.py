"""Count the token pairs that a mask keeps, in one launch for masks that come with every call."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.triton_permute import shared_strides

# Lists that one program of equal blocks adds up.
_LISTS = 256
# Query and key blocks of one tile of a mask of variable blocks.
_TILE = (16, 128)


@triton.jit
def _listed_pairs_kernel(
    counts_ptr, indices_ptr, pairs_ptr, lists, Nq, N, seq_q, seq_kv, block_q, block_kv,
    LISTS: tl.constexpr,
):  # fmt: skip
    """One program adds up the pairs of LISTS query blocks."""
    row = tl.program_id(0).to(tl.int64) * LISTS + tl.arange(0, LISTS)
    inside = row < lists
    count = tl.load(counts_ptr + row, mask=inside, other=0)
    # Block ids ascend: only the last one of a list can be the partial last block.
    slot = tl.minimum(tl.maximum(count - 1, 0), N - 1)
    last = tl.load(indices_ptr + row * N + slot, mask=inside & (count > 0), other=0)
    missing = tl.where((last == N - 1) & (count > 0), N * block_kv - seq_kv, 0)
    keys = count.to(tl.int64) * block_kv - missing
    rows = tl.minimum(seq_q - (row % Nq) * block_q, block_q)
    tl.atomic_add(pairs_ptr, tl.sum(tl.where(inside, rows * keys, 0), 0))


@triton.jit
def _masked_pairs_kernel(
    mask_ptr, q_offsets_ptr, kv_offsets_ptr, pairs_ptr, mask_stride_b, mask_stride_h,
    q_stride_b, q_stride_h, kv_stride_b, kv_stride_h, H, Nq, N,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program adds up the pairs of ROWS query blocks of one head."""
    head = tl.program_id(1).to(tl.int64)
    b, h = head // H, head % H
    mask_ptr += b * mask_stride_b + h * mask_stride_h
    q_offsets_ptr += b * q_stride_b + h * q_stride_h
    kv_offsets_ptr += b * kv_stride_b + h * kv_stride_h
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keys = tl.zeros([ROWS], tl.int64)
    for start in range(0, N, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        first = tl.load(kv_offsets_ptr + j, mask=j < N, other=0)
        end = tl.load(kv_offsets_ptr + j + 1, mask=j < N, other=0)
        inside = (i < Nq)[:, None] & (j < N)[None, :]
        kept = tl.load(mask_ptr + i[:, None] * N + j[None, :], mask=inside, other=0) != 0
        keys += tl.sum(tl.where(kept, (end - first)[None, :], 0), 1)
    first = tl.load(q_offsets_ptr + i, mask=i < Nq, other=0)
    end = tl.load(q_offsets_ptr + i + 1, mask=i < Nq, other=0)
    tl.atomic_add(pairs_ptr, tl.sum((end - first) * keys, 0))


def kept_pairs_triton(mask: BlockMask | RaggedBlockMask) -> tuple[Tensor, int]:
    """Count kept token pairs, without a synchronisation.

    Args:
        mask: lists or a mask on a device that Triton runs on.

    Returns:
        0-dim int64 pairs of all heads that the mask distinguishes, and the number of these heads.
    """
    pairs = torch.zeros((), dtype=torch.int64, device=mask.device)
    if isinstance(mask, BlockMask):
        lists = mask.kv_num_blocks.numel()
        heads = lists // mask.num_q_blocks
        _listed_pairs_kernel[(triton.cdiv(lists, _LISTS),)](
            mask.kv_num_blocks.contiguous(), mask.kv_indices.contiguous(), pairs, lists,
            mask.num_q_blocks, mask.num_kv_blocks, mask.seq_q, mask.seq_kv, mask.block_q,
            mask.block_kv, LISTS=_LISTS, num_warps=4,
        )  # fmt: skip
        return pairs, heads
    kept = mask.mask.contiguous()
    parts = (kept, mask.q_offsets.contiguous(), mask.kv_offsets.contiguous())
    B, H = torch.broadcast_shapes(*(x.shape[:2] for x in parts))
    _masked_pairs_kernel[(triton.cdiv(mask.num_q_blocks, _TILE[0]), B * H)](
        kept.view(torch.uint8), *parts[1:], pairs, *(s for x in parts for s in shared_strides(x)),
        H, mask.num_q_blocks, mask.num_kv_blocks, ROWS=_TILE[0], COLUMNS=_TILE[1], num_warps=4,
    )  # fmt: skip
    return pairs, B * H
