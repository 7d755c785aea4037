"""Block-sparse attention in plain torch, faster than dense attention on a CPU.

Each head's query blocks are sorted by their number of keys and taken a few at a time: their kept
key blocks are gathered side by side and attended to in one batched call. Batches are small enough
for the gathered keys to stay in the cache.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.ragged_block_mask import block_of_token

# Gathered keys and values of one batch per two threads: about the private caches of two cores.
_BATCH_BYTES = 4 << 20


def attend_torch(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | RaggedBlockMask, *, scale: float
) -> AttentionOutput:
    """Attend to the kept blocks; inputs as in ``block_sparse_attention``."""
    B, H, Sq, _ = q.shape
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full((B, H, Sq), -torch.inf, dtype=torch.float32, device=q.device)
    for b in range(B):
        for h in range(H):
            qkv, target = (q[b, h], k[b, h], v[b, h]), (out[b, h], lse[b, h])
            if isinstance(mask, BlockMask):
                _attend_head(*qkv, mask, (b, h), scale, *target)
            else:
                _attend_ragged_head(*qkv, mask, (b, h), scale, *target)
    return AttentionOutput(out, lse)


def _attend_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    head: tuple[int, int],
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    counts, indices, keys = (_of_head(t, head) for t in _row_lists(mask))
    q_blocks, k_blocks, v_blocks = (
        _in_blocks(x, block)
        for x, block in ((q, mask.block_q), (k, mask.block_kv), (v, mask.block_kv))
    )
    order = torch.argsort(keys, stable=True)
    order = order[int((keys == 0).sum()) :]
    while len(order):
        widest = int(counts[order[-1]])
        rows = order[-_rows_per_batch(widest * mask.block_kv, k, mask.block_q) :]
        order = order[: -len(rows)]
        columns = indices[rows, :widest].flatten()
        k_rows, v_rows = (
            x.index_select(0, columns).view(len(rows), widest * mask.block_kv, -1)
            for x in (k_blocks, v_blocks)
        )
        o, row_lse = _attend_batch(q_blocks[rows], k_rows, v_rows, keys[rows], scale)
        _scatter_rows(out, o, rows, mask.block_q)
        _scatter_rows(lse, row_lse, rows, mask.block_q)


def _row_lists(mask: BlockMask) -> tuple[Tensor, Tensor, Tensor]:
    counts = mask.kv_num_blocks.long().clamp(0, mask.num_kv_blocks)
    indices = mask.kv_indices.long().clamp(0, mask.num_kv_blocks - 1)
    slots = torch.arange(mask.num_kv_blocks, device=mask.device)
    # Rows are padded with a block they keep anyway: a NaN in a dropped block must not show.
    indices = torch.where(slots < counts[..., None], indices, indices[..., :1])
    return counts, indices, mask.keys_per_row()


def _of_head(tensor: Tensor, head: tuple[int, int]) -> Tensor:
    b, h = (0 if size == 1 else i for i, size in zip(head, tensor.shape[:2], strict=True))
    return tensor[b, h]


def _in_blocks(x: Tensor, block: int) -> Tensor:
    """Cut (S, D) into (N, block, D), zero-padded; a view where possible."""
    missing = -len(x) % block
    if missing:
        x = torch.nn.functional.pad(x, (0, 0, 0, missing))
    return x.contiguous().view(-1, block, x.shape[-1])


def _rows_per_batch(keys: int, k: Tensor, block_q: int) -> int:
    budget = _BATCH_BYTES * max(1, torch.get_num_threads() // 2)
    row_bytes = 2 * keys * k.shape[-1] * k.element_size()
    # The CPU kernel splits queries in slices of 32: give every thread a slice.
    return max(1, budget // row_bytes, 32 * torch.get_num_threads() // block_q)


def _attend_batch(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend (R, Mq, D) to the first ``keys`` (R,) of (R, Mk, D)."""
    longest = int(keys.max())
    k, v = k[:, :longest], v[:, :longest]
    bias = None
    if int(keys.min()) < longest:
        inside = torch.arange(longest, device=k.device) < keys[:, None]
        bias = torch.zeros(inside.shape, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill_(~inside, -torch.inf)[:, None]
    return _attend_dense(q, k, v, bias, scale)


def _attend_dense(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output (R, Mq, D) and natural LSE (R, Mq) of R small dense attentions."""
    if q.device.type == "cpu":
        # SDPA's own CPU kernel: called by its name because the public function drops the LSE.
        four = None if bias is None else bias[:, None].expand(-1, 1, q.shape[1], -1)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, None], k[:, None], v[:, None], attn_mask=four, scale=scale
        )
        return out[:, 0], lse.reshape(q.shape[:2])
    # Rounded to bfloat16 here, logits would put the LSE off by up to 1 %.
    scores = (q.float() @ k.float().mT) * scale
    scores = scores if bias is None else scores + bias
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse[..., None]).to(v.dtype) @ v, lse


def _scatter_rows(target: Tensor, blocks: Tensor, rows: Tensor, block: int) -> None:
    """Write (R, block, ...) into the named blocks of (S, ...), cutting off the padding."""
    whole = len(target) // block
    blocks = blocks.to(target.dtype)
    inside = rows < whole
    if bool(inside.all()):
        target[: whole * block].view(whole, block, *target.shape[1:]).index_copy_(0, rows, blocks)
        return
    target[whole * block :] = blocks[~inside][0][: len(target) - whole * block]
    if bool(inside.any()):
        _scatter_rows(target[: whole * block], blocks[inside], rows[inside], block)


def _attend_ragged_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: RaggedBlockMask,
    head: tuple[int, int],
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    bounds = _of_head(mask.q_offsets, head).tolist()
    block_of_key = block_of_token(_of_head(mask.kv_offsets, head), len(k))
    kept = _of_head(mask.mask, head)
    for i, (first, last) in enumerate(itertools.pairwise(bounds)):
        keys = kept[i][block_of_key].nonzero()[:, 0]
        if first == last or not len(keys):
            continue
        o, row_lse = _attend_dense(
            q[None, first:last],
            k.index_select(0, keys)[None],
            v.index_select(0, keys)[None],
            None,
            scale,
        )
        out[first:last], lse[first:last] = o[0], row_lse[0]
