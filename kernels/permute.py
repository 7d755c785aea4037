"""Bring tokens into a plan's order and back, per head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native
from vidsparse.kernels.moved_heads import MovedHeads
from vidsparse.kernels.ragged_block_mask import offsets_from_sizes


class SortedTokens(NamedTuple):
    """Tokens sorted by label.

    Args:
        order: (B, H, S) int32, natural index of the token at each position.
        offsets: (B, H, K + 1) int32, first position of each label.
    """

    order: Tensor
    offsets: Tensor


def permute_tokens(x: Tensor, order: Tensor | None) -> Tensor:
    """Gather tokens: position i of the result is token ``order[i]``.

    Args:
        x: (B, H, S, D).
        order: (B | 1, H | 1, S) int32 or int64 permutation; None is the identity and returns x.
    """
    if order is None:
        return x
    _check_order(x, order)
    if triton_is_native(x.device):
        from vidsparse.kernels.triton_permute import gather_rows

        return gather_rows([x], [order])[0]
    return x.reshape(-1, x.shape[-1]).index_select(0, _flat_rows(x, order)).view(x.shape)


def restore_tokens(x: Tensor, order: Tensor | None) -> Tensor:
    """Undo ``permute_tokens``: token ``order[i]`` of the result is position i of x.

    Args:
        x: (B, H, S, D) in permuted order.
        order: the permutation that ``permute_tokens`` was given.
    """
    if order is None:
        return x
    _check_order(x, order)
    if triton_is_native(x.device):
        from vidsparse.kernels.triton_permute import scatter_rows

        return scatter_rows(x, order)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out.view(-1, x.shape[-1]).index_copy_(0, _flat_rows(x, order), x.reshape(-1, x.shape[-1]))
    return out


def permute_qkv(
    q: Tensor, k: Tensor, v: Tensor, q_order: Tensor | None, kv_order: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Permute q by ``q_order`` and k, v by ``kv_order`` in one launch; None leaves as is."""
    orders = [(q, q_order), (k, kv_order), (v, kv_order)]
    moved = [(x, order) for x, order in orders if order is not None]
    if not moved or not triton_is_native(q.device):
        return tuple(permute_tokens(x, order) for x, order in orders)  # type: ignore[return-value]
    from vidsparse.kernels.triton_permute import gather_rows

    for x, order in moved:
        _check_order(x, order)
    done = iter(gather_rows([x for x, _ in moved], [order for _, order in moved]))
    q, k, v = (x if order is None else next(done) for x, order in orders)
    return q, k, v


def move_heads(
    k: Tensor, v: Tensor, heads: Tensor, q_order: Tensor, kv_order: Tensor
) -> MovedHeads:
    """Permute the keys and values of some heads only; without Triton all heads are copied.

    Args:
        k: (B, H, Skv, D) keys in natural order.
        v: (B, H, Skv, D) values.
        heads: (B | 1, H | 1) bool on the device, the heads whose orders are not the identity.
        q_order: (B | 1, H | 1, Sq) int32 token order of the queries, the identity in other heads.
        kv_order: (B | 1, H | 1, Skv) int32 or int64 token order of the keys, likewise.
    """
    _check_order(k, kv_order)
    heads = heads.expand(k.shape[:2]).contiguous()
    q_order = q_order.expand(*k.shape[:2], -1).to(torch.int32).contiguous()
    if triton_is_native(k.device):
        from vidsparse.kernels.triton_permute import gather_rows

        return MovedHeads(heads, q_order, *gather_rows([k, v], [kv_order] * 2, heads=heads))
    return MovedHeads(heads, q_order, permute_tokens(k, kv_order), permute_tokens(v, kv_order))


def sort_by_label(labels: Tensor, num_labels: int) -> SortedTokens:
    """Sort tokens by label, keeping the natural order within a label.

    Args:
        labels: (B, H, S) int32 or int64 in [0, num_labels).
        num_labels: K.

    Returns:
        The order and the label offsets, built on the device without a synchronisation.
    """
    if triton_is_native(labels.device):
        from vidsparse.kernels.triton_sort import sort_by_label_triton

        return SortedTokens(*sort_by_label_triton(labels, num_labels))
    order = torch.argsort(labels, dim=-1, stable=True).to(torch.int32)
    return SortedTokens(order, offsets_from_sizes(count_labels(labels, num_labels)))


def count_labels(labels: Tensor, num_labels: int) -> Tensor:
    """Return the (B, H, K) int32 number of tokens with each label."""
    sizes = torch.zeros(*labels.shape[:-1], num_labels, dtype=torch.int32, device=labels.device)
    ones = torch.ones(1, dtype=torch.int32, device=labels.device).expand(labels.shape)
    return sizes.scatter_add_(-1, labels.long(), ones)


def _flat_rows(x: Tensor, order: Tensor) -> Tensor:
    B, H, S, _ = x.shape
    base = torch.arange(B * H, device=x.device).view(B, H, 1) * S
    return (base + order).flatten()


def _check_order(x: Tensor, order: Tensor) -> None:
    fits = order.ndim == 3 and all(
        a in (1, b) for a, b in zip(order.shape[:2], x.shape[:2], strict=True)
    )
    if x.ndim != 4 or not fits or order.shape[2] != x.shape[2]:
        raise ValueError(
            f"order has shape {tuple(order.shape)} for tokens {tuple(x.shape)}; give (B | 1, "
            "H | 1, S)"
        )
    if order.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"order is {order.dtype}; give int32 or int64")
    if order.device != x.device:
        raise ValueError(f"order is on {order.device}, the tokens on {x.device}; move one")
