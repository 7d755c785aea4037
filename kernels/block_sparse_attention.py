"""Block-sparse attention: one function, several implementations, one mask format."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput, merge_attention
from vidsparse.kernels.backends import Impl, choose_impl, why_no_triton
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_statistics import block_mass
from vidsparse.kernels.launch import triton_config
from vidsparse.kernels.moved_heads import MovedHeads
from vidsparse.kernels.permute import permute_tokens, restore_tokens
from vidsparse.kernels.reference import attention_reference
from vidsparse.kernels.running_statistics import RunningStat, running_statistic
from vidsparse.kernels.torch_attention import attend_torch

__all__ = [
    "AttentionOutput",
    "Impl",
    "MovedHeads",
    "RunningStat",
    "block_sparse_attention",
    "merge_attention",
    "unsupported_reasons",
]

_GPU_DTYPES = (torch.bfloat16, torch.float16)


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask,
    *,
    scale: float | None = None,
    impl: Impl = Impl.AUTO,
    stats_lse: Tensor | None = None,
    running: RunningStat | None = None,
    compensate: bool = False,
    tangents: Tensor | None = None,
    moved: MovedHeads | None = None,
) -> AttentionOutput:
    """Attend each query block to its kept key blocks.

    Args:
        q: (B, H, Sq, D) floating, last dimension contiguous.
        k: (B, H, Skv, D), same dtype and device.
        v: (B, H, Skv, D), same dtype and device.
        mask: kept blocks. Lists with values out of range give unspecified results but never
            touch memory outside the tensors; ``mask.validate()`` checks them.
        scale: positive factor on the logits, 1 / sqrt(D) by default.
        impl: implementation; anything but AUTO is used or refused, never replaced.
        stats_lse: (B, H, Sq) float32 natural LSE, as of an earlier step; asks for the mass of each
            kept block against it. The GPU kernels sum it while they attend if blocks have 128
            keys; otherwise it costs another product of queries and keys.
        running: statistic of each kept block that needs no earlier LSE, at the same cost; not
            together with ``stats_lse``, and for blocks of one size only. If the last block of the
            sequence is partial, it must stand last in the lists that hold it.
        compensate: let each skipped block count as its number of tokens times its mean key and
            mean value, so that it adds exp(scale q.k_mean + log size). Exact where the keys and
            the values of skipped blocks are constant. Rows that keep every block are unchanged. A
            key or value that is not finite then reaches every query: it is kept or averaged.
        tangents: (B, H, Nkv, D) float32, for ``compensate``: for each key block the query at which
            compensation is exact. The means of a block are then those that this query sees, keys
            weighed with its softmax weights, and in place of the log size stands what makes the
            block's weight right for it. The mask leads with (B, H). None is the query 0.
        moved: the mask of each head is in an order of its own: q, k, v and what is returned are in
            natural order, and heads that keep it are not copied. For blocks of one size, without
            compensation and statistics. TORCH and REFERENCE copy all heads.

    Returns:
        Output in q's dtype and the natural LSE, which counts what compensation adds; rows without
        keys give 0 and -inf without compensation, and see means only with it. With
        ``stats_lse``, ``block_stats`` (B, H, Nq, Nkv) sums exp(logit - stats_lse) over each kept
        block, rows with LSE -inf left out; 0 for other blocks. With ``running`` it holds what
        ``RunningStat`` says.

    Raises:
        ValueError: the inputs do not fit together, or ``impl`` cannot take them.
    """
    reasons = _input_reasons(q, k, v, mask) + _stats_reasons(q, mask, stats_lse, running)
    reasons += [] if tangents is None else _tangent_reasons(q, mask, tangents, compensate)
    if moved is not None:
        extras = compensate or stats_lse is not None or running is not None
        reasons += _moved_reasons(q, k, mask, moved, extras=extras)
    if reasons:
        raise ValueError("block_sparse_attention: " + "; ".join(reasons))
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive")
    impl = choose_impl(
        impl,
        [Impl.TORCH] if q.device.type == "cpu" else [Impl.GLUON, Impl.TRITON, Impl.TORCH],
        lambda candidate: unsupported_reasons(candidate, q, k, v, mask),
        task="block-sparse attention",
        where=f"{q.device}, head size {q.shape[-1]}",
    )
    if moved is not None:
        return _attend_moved(impl, q, k, v, mask, scale, moved)
    return _run(impl, q, k, v, mask, scale, stats_lse, running, compensate, tangents)


def unsupported_reasons(
    impl: Impl, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | RaggedBlockMask
) -> list[str]:
    """List why an implementation cannot take these inputs; empty when it can."""
    if impl is Impl.TRITON:
        return _triton_reasons(q)
    if impl is Impl.GLUON:
        from vidsparse.kernels.hopper import gluon_reasons

        return gluon_reasons(q, k, v, mask)
    return []


def _run(
    impl: Impl,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask,
    scale: float,
    stats_lse: Tensor | None,
    running: RunningStat | None,
    compensate: bool,
    tangents: Tensor | None,
) -> AttentionOutput:
    if _sums_while_attending(impl, q, mask):
        return _attend(impl, q, k, v, mask, scale, stats_lse, running, compensate, tangents)
    output = _attend(impl, q, k, v, mask, scale, None, None, compensate, tangents)
    if stats_lse is not None:
        return dataclasses.replace(output, block_stats=_kept_mass(q, k, mask, stats_lse, scale))
    if running is not None and isinstance(mask, BlockMask):
        stats = running_statistic(q, k, mask, running, scale=scale)
        return dataclasses.replace(output, block_stats=stats)
    return output


def _attend(
    impl: Impl,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask,
    scale: float,
    stats_lse: Tensor | None,
    running: RunningStat | None,
    compensate: bool,
    tangents: Tensor | None,
) -> AttentionOutput:
    if impl is Impl.REFERENCE:
        wide = torch.float64 if q.dtype is torch.float64 else torch.float32
        exact = attention_reference(
            q, k, v, mask, scale=scale, compute_dtype=wide, compensate=compensate,
            tangents=tangents,
        )  # fmt: skip
        return AttentionOutput(exact.out.to(q.dtype), exact.lse)
    if impl is Impl.TORCH:
        return attend_torch(q, k, v, mask, scale=scale, compensate=compensate, tangents=tangents)
    if impl is Impl.TRITON:
        from vidsparse.kernels.triton_attention import attend_triton

        return attend_triton(
            q, k, v, mask, scale=scale, stats_lse=stats_lse, running=running,
            compensate=compensate, tangents=tangents,
        )  # fmt: skip
    from vidsparse.kernels.hopper import attend_gluon, attend_ragged_gluon

    if isinstance(mask, RaggedBlockMask):
        return attend_ragged_gluon(
            q, k, v, mask, scale=scale, compensate=compensate, tangents=tangents
        )
    return attend_gluon(
        q, k, v, mask, scale=scale, stats_lse=stats_lse, running=running,
        compensate=compensate, tangents=tangents,
    )  # fmt: skip


def _attend_moved(
    impl: Impl,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | RaggedBlockMask,
    scale: float,
    moved: MovedHeads,
) -> AttentionOutput:
    if impl is Impl.TRITON:
        from vidsparse.kernels.triton_attention import attend_triton

        return attend_triton(q, k, v, mask, scale=scale, moved=moved)
    if impl is Impl.GLUON and isinstance(mask, BlockMask):
        from vidsparse.kernels.hopper import attend_gluon

        return attend_gluon(q, k, v, mask, scale=scale, moved=moved)
    chosen = moved.heads[..., None, None]
    q, k, v = (
        permute_tokens(q, moved.q_order),
        torch.where(chosen, moved.k, k),
        torch.where(chosen, moved.v, v),
    )
    output = _attend(impl, q, k, v, mask, scale, None, None, False, None)
    return restore_attention(output, moved.q_order)


def restore_attention(output: AttentionOutput, order: Tensor | None) -> AttentionOutput:
    """Bring an output from a query order, (B | 1, H | 1, Sq), back to the natural one."""
    if order is None:
        return output
    out, lse = restore_tokens(output.out, order), output.lse
    if lse is not None:
        lse = restore_tokens(lse.unsqueeze(-1), order).squeeze(-1)
    return AttentionOutput(out, lse, output.block_stats)


def _moved_reasons(
    q: Tensor,
    k: Tensor,
    mask: BlockMask | RaggedBlockMask,
    moved: MovedHeads,
    *,
    extras: bool,
) -> list[str]:
    reasons = moved.reasons(q, k)
    if extras:
        reasons.append("moved heads go without compensation and statistics; permute all tokens")
    if isinstance(mask, RaggedBlockMask):
        reasons.append("moved heads need blocks of one size; give a BlockMask")
    return reasons


def _sums_while_attending(impl: Impl, q: Tensor, mask: BlockMask | RaggedBlockMask) -> bool:
    if isinstance(mask, RaggedBlockMask):
        return False
    if impl is Impl.TRITON:
        return mask.block_kv % _triton_tile_keys(q, mask) == 0
    if impl is Impl.GLUON:
        from vidsparse.kernels.hopper import choose_config

        config = choose_config(q.shape[-1], mask)
        return config is not None and config.tile_kv == mask.block_kv
    return False


def _triton_tile_keys(q: Tensor, mask: BlockMask) -> int:
    return triton_config(q.device, q.shape[-1], mask.block_kv).block_kv


def _kept_mass(
    q: Tensor, k: Tensor, mask: BlockMask | RaggedBlockMask, lse: Tensor, scale: float
) -> Tensor:
    kept = mask.to_dense()
    if isinstance(mask, RaggedBlockMask):
        bounds = (mask.q_offsets, mask.kv_offsets)
        mass = block_mass(q, k, lse, scale=scale, q_offsets=bounds[0], kv_offsets=bounds[1])
    else:
        mass = block_mass(q, k, lse, scale=scale, block_q=mask.block_q, block_kv=mask.block_kv)
    return mass.masked_fill(~kept, 0.0)


def _stats_reasons(
    q: Tensor,
    mask: BlockMask | RaggedBlockMask,
    stats_lse: Tensor | None,
    running: RunningStat | None,
) -> list[str]:
    if running is not None and stats_lse is not None:
        return ["running and stats_lse are both given; ask for one statistic"]
    if running is not None and isinstance(mask, RaggedBlockMask):
        return [f"running={running.value!r} needs blocks of one size; give a BlockMask"]
    if stats_lse is None:
        return []
    given = (tuple(stats_lse.shape), stats_lse.dtype, stats_lse.device)
    if given == (tuple(q.shape[:3]), torch.float32, q.device):
        return []
    return [f"stats_lse is {given}; give {(tuple(q.shape[:3]), torch.float32, q.device)}"]


def _tangent_reasons(
    q: Tensor, mask: BlockMask | RaggedBlockMask, tangents: Tensor, compensate: bool
) -> list[str]:
    reasons = [] if compensate else ["tangents say how to compensate; give compensate=True too"]
    lists = mask.kv_indices if isinstance(mask, BlockMask) else mask.mask
    if lists.shape[:2] != q.shape[:2]:
        reasons.append(f"the mask leads with {tuple(lists.shape[:2])}; with tangents give (B, H)")
    wanted = ((*q.shape[:2], mask.num_kv_blocks, q.shape[3]), torch.float32, q.device)
    given = (tuple(tangents.shape), tangents.dtype, tangents.device)
    return reasons if given == wanted else [*reasons, f"tangents are {given}; give {wanted}"]


def _triton_reasons(q: Tensor) -> list[str]:
    reasons = []
    why = why_no_triton(q.device)
    if why:
        reasons.append(why)
    if q.dtype not in (*_GPU_DTYPES, torch.float32):
        reasons.append(f"dtype {q.dtype}; use bfloat16, float16 or float32")
    if q.shape[-1] > 256:
        reasons.append(f"head size {q.shape[-1]}; use at most 256")
    return reasons


def _input_reasons(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | RaggedBlockMask) -> list[str]:
    shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
    if any(x.ndim != 4 for x in (q, k, v)):
        return [f"q, k, v have shapes {shapes}; give (B, H, S, D)"]
    reasons = []
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        reasons.append(f"q, k, v have shapes {shapes}; B, H and D must agree, and S of k and v")
    if 0 in (*q.shape, *k.shape):
        reasons.append(f"q, k, v have shapes {shapes}; every dimension must be at least 1")
    if len({q.dtype, k.dtype, v.dtype}) > 1 or not q.dtype.is_floating_point:
        reasons.append(f"dtypes {q.dtype}, {k.dtype}, {v.dtype}; give one floating dtype")
    if len({q.device, k.device, v.device, mask.device}) > 1:
        devices = ", ".join(str(x.device) for x in (q, k, v, mask))
        reasons.append(f"q, k, v, mask are on {devices}; move them to one device")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            reasons.append(f"{name}'s last dimension has stride {x.stride(-1)}; make it contiguous")
    return reasons + _mask_reasons(q, k, mask)


def _mask_reasons(q: Tensor, k: Tensor, mask: BlockMask | RaggedBlockMask) -> list[str]:
    reasons = []
    if (mask.seq_q, mask.seq_kv) != (q.shape[2], k.shape[2]):
        reasons.append(
            f"the mask is for {mask.seq_q} x {mask.seq_kv} tokens, q and k have "
            f"{q.shape[2]} x {k.shape[2]}"
        )
    lists = mask.kv_indices if isinstance(mask, BlockMask) else mask.mask
    if any(a not in (1, b) for a, b in zip(lists.shape[:2], q.shape[:2], strict=True)):
        reasons.append(
            f"the mask leads with {tuple(lists.shape[:2])}; give (B, H) = {tuple(q.shape[:2])} or 1"
        )
    return reasons
