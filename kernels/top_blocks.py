"""Keep the best entries of each row until their weights reach a target."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsparse.kernels.backends import triton_is_native

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def keep_top_weight(
    scores: Tensor, weights: Tensor, targets: Tensor, forced: Tensor | None = None
) -> Tensor:
    """Keep the highest scores of each row until the weight of the kept ones reaches a target.

    Of equal scores the lower index comes first. An entry is kept while what precedes it weighs
    less than the target.

    Args:
        scores: (R, N) float32, bfloat16 or float16; the last two are faster.
        weights: (R | 1, N) integer in [0, 2**31), 2**43 / N on average at most, as pairs of tokens
            of blocks are.
        targets: (R | 1, 1) floating or integer.
        forced: (R | 1, N) bool, entries that rank as infinite ones do and stay whatever the target;
            or None.

    Returns:
        (R, N) bool, made on the device without a synchronisation.
    """
    if triton_is_native(scores.device) and scores.dtype in _DTYPES:
        from vidsparse.kernels.triton_top_blocks import keep_top_weight_triton

        return keep_top_weight_triton(scores, weights, targets, forced)
    if forced is not None:
        scores = scores.masked_fill(forced, torch.inf)
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    ranked = weights.expand(scores.shape).gather(-1, order)
    before = torch.nn.functional.pad(ranked.cumsum(-1)[..., :-1], (1, 0))
    kept = before < targets
    kept = torch.empty_like(kept).scatter_(-1, order, kept)
    return kept if forced is None else kept | forced
