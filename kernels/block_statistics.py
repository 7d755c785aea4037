"""Statistics of blocks of tokens: what methods plan with."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.backends import Impl, choose_impl, why_no_triton
from vidsparse.kernels.block_mask import of_head
from vidsparse.kernels.ragged_block_mask import block_of_token

# Query rows of one step of the torch path: its (rows, Skv) weights should stay in the cache.
_ROWS = 128


def block_means(x: Tensor, *, block: int | None = None, offsets: Tensor | None = None) -> Tensor:
    """Average the tokens of each block.

    Args:
        x: (B, H, S, D).
        block: tokens per block, the last one may be partial; or
        offsets: (B | 1, H | 1, N + 1) int32 block boundaries in token order.

    Returns:
        (B, H, N, D) float32 means; 0 for empty blocks.

    Raises:
        ValueError: both or neither of ``block`` and ``offsets`` are given.
    """
    bounds = _offsets(x, block, offsets, "block", "offsets")
    sizes = bounds.diff().clamp(min=1)[..., None]
    return _segment_sums(x.float(), bounds) / sizes


def block_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor | None = None,
    *,
    block_q: int | None = None,
    block_kv: int | None = None,
    q_offsets: Tensor | None = None,
    kv_offsets: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """Sum the softmax weights of every block of the attention map.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Skv, D).
        lse: (B, H, Sq) natural log-sum-exp that normalises each row, exact or from an earlier
            step; None computes the exact one. Rows with -inf count as 0.
        block_q: query tokens per block; or
        q_offsets: (B | 1, H | 1, Nq + 1) int32 query block boundaries.
        block_kv: key tokens per block; or
        kv_offsets: (B | 1, H | 1, Nkv + 1) int32 key block boundaries.
        scale: factor on the logits, 1 / sqrt(D) by default.
        impl: implementation; anything but AUTO is used or refused, never replaced. TRITON and
            GLUON take blocks of one size.

    Returns:
        (B, H, Nq, Nkv) float32; with the exact LSE each row of blocks sums to its query tokens.

    Raises:
        ValueError: blocks are described twice or not at all, or ``impl`` cannot take the inputs.

    Source: AdaSpa, arXiv:2502.21079, equation 13.
    """
    rows = _offsets(q, block_q, q_offsets, "block_q", "q_offsets")
    columns = _offsets(k, block_kv, kv_offsets, "block_kv", "kv_offsets")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    impl = _choose(impl, q, k, block_q, block_kv)
    if block_q and block_kv and impl is not Impl.TORCH:
        from vidsparse.kernels.triton_statistics import row_lse_triton

        lse = row_lse_triton(q, k, scale) if lse is None else lse
        return _mass_on_gpu(impl, q, k, lse, (block_q, block_kv), scale)
    B, H, Sq, _ = q.shape
    by_row = torch.empty(B, H, Sq, columns.shape[-1] - 1, dtype=torch.float32, device=q.device)
    for b in range(B):
        for h in range(H):
            edges = of_head(columns, b, h).long()
            _row_mass(
                q[b, h], k[b, h], None if lse is None else lse[b, h], edges, scale, by_row[b, h]
            )
    return _segment_sums(by_row, rows)


def mass_unsupported_reasons(
    impl: Impl, q: Tensor, k: Tensor, *, block_q: int | None, block_kv: int | None
) -> list[str]:
    """List why ``block_mass`` cannot use an implementation; None stands for blocks of any size."""
    if impl is Impl.TORCH:
        return []
    if impl is Impl.GLUON:
        from vidsparse.kernels.hopper_mass import mass_reasons

        return mass_reasons(q, k, block_q, block_kv)
    if impl is not Impl.TRITON:
        return ["block mass has a torch, a Triton and a Gluon implementation"]
    reasons = [] if block_q and block_kv else ["blocks of several sizes; give one size"]
    why = why_no_triton(q.device)
    return [*reasons, why] if why else reasons


def _choose(impl: Impl, q: Tensor, k: Tensor, block_q: int | None, block_kv: int | None) -> Impl:
    return choose_impl(
        impl,
        # The interpreter is for tests: torch is faster on a CPU.
        [Impl.TORCH] if q.device.type == "cpu" else [Impl.GLUON, Impl.TRITON, Impl.TORCH],
        lambda candidate: mass_unsupported_reasons(
            candidate, q, k, block_q=block_q, block_kv=block_kv
        ),
        task="block mass",
        where=f"{q.device}, head size {q.shape[-1]}",
    )


def _mass_on_gpu(
    impl: Impl,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    blocks: tuple[int, int],
    scale: float,
    only: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    if impl is Impl.GLUON:
        from vidsparse.kernels.hopper_mass import block_mass_gluon

        return block_mass_gluon(q, k, lse, *blocks, scale, only=only, out=out)
    from vidsparse.kernels.triton_statistics import block_mass_triton

    return block_mass_triton(q, k, lse, *blocks, scale, only=only, out=out)


def renew_stale_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    mass: Tensor,
    stale: Tensor,
    *,
    block_q: int,
    block_kv: int,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the exact LSE and block mass of some query blocks again, and leave the others alone.

    The GPU kernels pass over the other blocks, so that the cost follows the number of stale ones
    and the host never waits for it; without Triton the host reads ``stale``.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Skv, D).
        lse: (B, H, Sq) float32 natural log-sum-exp, as of an earlier step.
        mass: (B, H, Nq, Nkv) float32, ``block_mass`` against it.
        stale: (B, H, Nq) bool, query blocks to compute.
        block_q: query tokens per block.
        block_kv: key tokens per block.
        scale: factor on the logits, 1 / sqrt(D) by default.

    Returns:
        New ``lse`` and ``mass``.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    lse, mass = lse.clone(), mass.clone()
    impl = _choose(Impl.AUTO, q, k, block_q, block_kv)
    if impl is not Impl.TORCH:
        from vidsparse.kernels.triton_statistics import row_lse_triton

        row_lse_triton(q, k, scale, only=(stale, block_q), out=lse)
        return lse, _mass_on_gpu(impl, q, k, lse, (block_q, block_kv), scale, stale, mass)
    edges = _offsets(k, block_kv, None, "block_kv", "kv_offsets")[0, 0].long()
    for b, h, block in _true_places(stale):
        rows = slice(block * block_q, (block + 1) * block_q)
        lse[b, h, rows] = torch.logsumexp(q[b, h, rows].float() @ k[b, h].float().mT * scale, -1)
        weights = torch.empty(
            *lse[b, h, rows].shape, mass.shape[-1], dtype=torch.float32, device=q.device
        )
        _row_mass(q[b, h, rows], k[b, h], lse[b, h, rows], edges, scale, weights)
        mass[b, h, block] = weights.sum(0)
    return lse, mass


def _true_places(flags: Tensor) -> list[tuple[int, int, int]]:
    return [
        (b, h, i)
        for b, heads in enumerate(flags.tolist())
        for h, blocks in enumerate(heads)
        for i, flag in enumerate(blocks)
        if flag
    ]


def _row_mass(
    q: Tensor, k: Tensor, lse: Tensor | None, edges: Tensor, scale: float, out: Tensor
) -> None:
    """Write the (Sq, Nkv) mass of each key block in each row of one head."""
    wide = k.float() * scale
    for start in range(0, len(q), _ROWS):
        rows = slice(start, start + _ROWS)
        scores = q[rows].float() @ wide.mT
        base = torch.logsumexp(scores, -1) if lse is None else lse[rows].float()
        weights = scores.sub_(base.nan_to_num(neginf=torch.inf)[:, None]).exp_()
        out[rows] = torch.segment_reduce(
            weights, "sum", offsets=edges.expand(len(weights), -1).contiguous(), axis=1, unsafe=True
        )


def _segment_sums(x: Tensor, offsets: Tensor) -> Tensor:
    """Sum (B, H, S, D) float32 over the ranges given by (B | 1, H | 1, N + 1) offsets."""
    B, H, S, D = x.shape
    N = offsets.shape[-1] - 1
    labels = block_of_token(offsets, S).expand(B, H, S)
    # One column per block and one for tokens past the last offset.
    sums = torch.zeros(B, H, N + 1, D, dtype=torch.float32, device=x.device)
    return sums.scatter_add_(2, labels[..., None].expand(x.shape), x)[:, :, :N]


def _offsets(
    x: Tensor, block: int | None, offsets: Tensor | None, block_name: str, offsets_name: str
) -> Tensor:
    if (block is None) == (offsets is None):
        raise ValueError(f"give either {block_name} or {offsets_name}")
    if offsets is not None:
        return offsets
    if block is None or block < 1:
        raise ValueError(f"{block_name}={block} must be at least 1")
    S = x.shape[2]
    N = -(-S // block)
    starts = torch.arange(N + 1, dtype=torch.int32, device=x.device) * block
    return starts.clamp_(max=S).view(1, 1, -1)
