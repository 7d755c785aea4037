"""Yardsticks for kernel tests: errors are compared with eager attention's, never with a guess."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_means import key_value_means
from vidsparse.kernels.reference import attention_reference, kept_by_queries

# A kernel may be this much worse than eager attention in the same dtype, against float64.
_MARGIN = 1.5


def eager_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask | None,
    scale: float | None,
    *,
    compensate: bool = False,
    tangents: Tensor | None = None,
) -> Tensor:
    """Attend the way eager models do: every intermediate rounded to the inputs' dtype."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = (q @ k.mT) * scale
    if mask is not None:
        keep = mask.token_mask().expand(*q.shape[:3], k.shape[2])
        scores = scores.masked_fill(~keep, -torch.inf)
    if mask is not None and compensate:
        means = key_value_means(k, v, mask, tangents, scale=scale)
        skipped = (q @ means.k.mT) * scale + means.log_size[:, :, None].to(q.dtype)
        skipped = skipped.masked_fill(kept_by_queries(mask), -torch.inf)
        scores, v = torch.cat([scores, skipped], -1), torch.cat([v, means.v], 2)
    return torch.softmax(scores, -1, dtype=torch.float32).nan_to_num(0).to(q.dtype) @ v


def assert_as_exact_as_eager(
    got: AttentionOutput,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask | None,
    *,
    scale: float | None = None,
    compensate: bool = False,
    tangents: Tensor | None = None,
) -> None:
    """Check an output against float64, allowing little more than eager attention's own error.

    Raises:
        AssertionError: the largest or the mean error exceeds 1.5 times eager's, the LSE is off by
            more than 1e-3 of its size, or rows without keys are not 0 and -inf.
    """
    exact = attention_reference(
        q, k, v, mask, scale=scale, compensate=compensate, tangents=tangents
    )
    eager = eager_attention(q, k, v, mask, scale, compensate=compensate, tangents=tangents)
    eager = eager.double() - exact.out
    error = got.out.double() - exact.out
    floor = torch.finfo(q.dtype).eps * exact.out.abs().max()
    for name, size in (("largest", torch.Tensor.max), ("mean", torch.Tensor.mean)):
        mine, allowed = size(error.abs()), _MARGIN * size(eager.abs()) + floor
        # Written so that NaN fails.
        assert bool(mine <= allowed), f"{name} error {mine:.3g} exceeds {allowed:.3g}"
    assert got.lse is not None
    assert exact.lse is not None
    torch.testing.assert_close(got.lse, exact.lse, rtol=1e-3, atol=1e-3)


def random_block_mask(
    B: int,
    H: int,
    seq_q: int,
    seq_kv: int,
    *,
    block_q: int,
    block_kv: int,
    density: float,
    generator: torch.Generator,
) -> BlockMask:
    """Keep each block with probability ``density``, on the generator's device."""
    shape = (B, H, -(-seq_q // block_q), -(-seq_kv // block_kv))
    dense = torch.rand(shape, generator=generator, device=generator.device) < density
    return BlockMask.from_dense(
        dense, block_q=block_q, block_kv=block_kv, seq_q=seq_q, seq_kv=seq_kv
    )


def random_sizes(B: int, H: int, blocks: int, seq: int, *, generator: torch.Generator) -> Tensor:
    """Draw Zipf-like (B, H, blocks) int32 block sizes that sum to ``seq``, some of them 0."""
    weights = 1 / torch.arange(1, blocks + 1, dtype=torch.float64)
    device = generator.device
    labels = torch.multinomial(
        weights.to(device).expand(B * H, -1), seq, replacement=True, generator=generator
    )
    order = torch.rand(B * H, blocks, generator=generator, device=device).argsort(-1)
    counts = torch.zeros(B * H, blocks, dtype=torch.int32, device=device)
    ones = torch.ones(labels.shape, dtype=torch.int32, device=device)
    counts.scatter_add_(-1, order.gather(-1, labels), ones)
    return counts.view(B, H, blocks)


def random_ragged_mask(
    B: int,
    H: int,
    seq_q: int,
    seq_kv: int,
    *,
    q_blocks: int,
    kv_blocks: int,
    density: float,
    generator: torch.Generator,
) -> RaggedBlockMask:
    """Keep each cluster pair with probability ``density``; sizes are Zipf-like."""
    q_sizes = random_sizes(B, H, q_blocks, seq_q, generator=generator)
    kv_sizes = random_sizes(B, H, kv_blocks, seq_kv, generator=generator)
    shape = (B, H, q_blocks, kv_blocks)
    dense = torch.rand(shape, generator=generator, device=generator.device) < density
    return RaggedBlockMask.from_sizes(dense, q_sizes, kv_sizes, seq_q=seq_q, seq_kv=seq_kv)


def poison_dropped_keys(x: Tensor, mask: BlockMask | RaggedBlockMask) -> Tensor:
    """Return (B, H, Skv, D) keys or values with NaN in every token that no query attends to."""
    keep = mask.token_mask().any(2).expand(x.shape[:3])
    return torch.where(keep[..., None], x, torch.full_like(x, torch.nan))
