"""Block-sparse attention in plain torch, faster than dense attention on a CPU.

Each head's query blocks are sorted by their number of keys and taken a few at a time: their kept
key blocks are gathered side by side and attended to in one batched call. Batches are small enough
for the gathered keys to stay in the cache.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask, of_head
from vidsparse.kernels.block_means import KeyValueMeans, key_value_means
from vidsparse.kernels.ragged_block_mask import block_of_token

# Gathered keys and values of one batch per two threads: about the private caches of two cores.
_BATCH_BYTES = 4 << 20


class _Skipped(NamedTuple):
    """What one head's query blocks attend to besides their kept blocks.

    Args:
        k: (Nkv, D) mean keys.
        v: (Nkv, D) mean values.
        bias: (Nq, Nkv) float32 added to their logits: log sizes, -inf for kept and empty blocks.
    """

    k: Tensor
    v: Tensor
    bias: Tensor


def attend_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask,
    *,
    scale: float,
    compensate: bool = False,
    tangents: Tensor | None = None,
) -> AttentionOutput:
    """Attend to the kept blocks; inputs as in ``block_sparse_attention``."""
    B, H, Sq, _ = q.shape
    kept = mask.to_dense() if compensate else None
    if kept is not None and bool(kept.all()):
        kept = None
    means = None if kept is None else key_value_means(k, v, mask, tangents, scale=scale)
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full((B, H, Sq), -torch.inf, dtype=torch.float32, device=q.device)
    for b in range(B):
        for h in range(H):
            qkv, target = (q[b, h], k[b, h], v[b, h]), (out[b, h], lse[b, h])
            skipped = None
            if kept is not None and means is not None:
                skipped = _skipped(means, of_head(kept, b, h), (b, h))
            if isinstance(mask, BlockMask):
                _attend_head(*qkv, mask, (b, h), skipped, scale, *target)
            else:
                _attend_ragged_head(*qkv, mask, (b, h), skipped, scale, *target)
    return AttentionOutput(out, lse)


def _skipped(means: KeyValueMeans, kept: Tensor, head: tuple[int, int]) -> _Skipped:
    k, v, log_size = (of_head(x, *head) for x in means)
    return _Skipped(k, v, log_size.expand(kept.shape).masked_fill(kept, -torch.inf))


def _attend_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    head: tuple[int, int],
    skipped: _Skipped | None,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    counts, indices, keys = (of_head(t, *head) for t in _row_lists(mask))
    q_blocks, k_blocks, v_blocks = (
        _in_blocks(x, block)
        for x, block in ((q, mask.block_q), (k, mask.block_kv), (v, mask.block_kv))
    )
    order = torch.argsort(keys, stable=True)
    if skipped is None:
        order = order[int((keys == 0).sum()) :]
    while len(order):
        widest = int(counts[order[-1]])
        longest = widest * mask.block_kv + (0 if skipped is None else len(skipped.k))
        rows = order[-_rows_per_batch(longest, k, mask.block_q) :]
        order = order[: -len(rows)]
        columns = indices[rows, :widest].flatten()
        k_rows, v_rows = (
            x.index_select(0, columns).view(len(rows), widest * mask.block_kv, x.shape[-1])
            for x in (k_blocks, v_blocks)
        )
        means = None if skipped is None else skipped._replace(bias=skipped.bias[rows])
        o, row_lse = _attend_batch(q_blocks[rows], k_rows, v_rows, keys[rows], means, scale)
        _scatter_rows(out, o, rows, mask.block_q)
        _scatter_rows(lse, row_lse, rows, mask.block_q)


def _row_lists(mask: BlockMask) -> tuple[Tensor, Tensor, Tensor]:
    counts = mask.kv_num_blocks.long().clamp(0, mask.num_kv_blocks)
    indices = mask.kv_indices.long().clamp(0, mask.num_kv_blocks - 1)
    slots = torch.arange(mask.num_kv_blocks, device=mask.device)
    # Rows are padded with a block they keep anyway: a NaN in a dropped block must not show.
    indices = torch.where(slots < counts[..., None], indices, indices[..., :1])
    return counts, indices, mask.keys_per_row()


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
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, skipped: _Skipped | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend (R, Mq, D) to the first ``keys`` (R,) of (R, Mk, D), and to skipped blocks' means."""
    longest = int(keys.max())
    k, v = k[:, :longest], v[:, :longest]
    bias = None
    if skipped is not None or int(keys.min()) < longest:
        inside = torch.arange(longest, device=k.device) < keys[:, None]
        bias = torch.zeros(inside.shape, dtype=_bias_dtype(q), device=q.device)
        bias.masked_fill_(~inside, -torch.inf)
    if skipped is not None and bias is not None:
        k, v, bias = _with_means(k, v, bias, skipped)
    return _attend_dense(q, k, v, None if bias is None else bias[:, None], scale)


def _bias_dtype(q: Tensor) -> torch.dtype:
    """Return what SDPA adds to logits of these queries: in float64 it reads no float32."""
    return torch.promote_types(q.dtype, torch.float32)


def _with_means(
    k: Tensor, v: Tensor, bias: Tensor, skipped: _Skipped
) -> tuple[Tensor, Tensor, Tensor]:
    """Append the means to (R, Mk, D) keys and values, and their bias to (R, Mk)."""
    means = (x.expand(len(k), *x.shape) for x in (skipped.k, skipped.v))
    k, v = (torch.cat([x, mean], 1) for x, mean in zip((k, v), means, strict=True))
    return k, v, torch.cat([bias, skipped.bias], 1)


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
    skipped: _Skipped | None,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    bounds = of_head(mask.q_offsets, *head).tolist()
    block_of_key = block_of_token(of_head(mask.kv_offsets, *head), len(k))
    kept = of_head(mask.mask, *head)
    for i, (first, last) in enumerate(itertools.pairwise(bounds)):
        keys = kept[i][block_of_key].nonzero()[:, 0]
        if first == last or (skipped is None and not len(keys)):
            continue
        k_rows, v_rows = (x.index_select(0, keys)[None] for x in (k, v))
        bias = None
        if skipped is not None:
            means = skipped._replace(bias=skipped.bias[i : i + 1])
            k_rows, v_rows, bias = _with_means(
                k_rows,
                v_rows,
                torch.zeros(1, len(keys), dtype=_bias_dtype(q), device=q.device),
                means,
            )
            bias = bias[:, None]
        o, row_lse = _attend_dense(q[None, first:last], k_rows, v_rows, bias, scale)
        out[first:last], lse[first:last] = o[0], row_lse[0]
