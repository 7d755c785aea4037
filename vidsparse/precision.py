"""In how many bits attention is computed."""

import enum

from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.attention_8bit import (
    block_sparse_attention_8bit,
    dense_attention_8bit,
    reasons_8bit,
)
from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_sparse_attention import Impl
from vidsparse.plan import AttentionPlan


class Precision(enum.StrEnum):
    """What the video self-attentions multiply with.

    NATIVE is the model's own dtype. SPARSE_8BIT rounds the inputs of sparse calls to 8 bits, about
    4 % off exact attention and faster on Hopper and Ada. ALL_8BIT rounds those of dense calls too,
    such as warm-up steps.
    """

    NATIVE = "native"
    SPARSE_8BIT = "8bit-sparse"
    ALL_8BIT = "8bit"


def attend_8bit(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, *, impl: Impl
) -> AttentionOutput:
    """Attend in 8 bits with tokens that are in the plan's orders already.

    Raises:
        UsageError: the plan asks for what 8-bit attention does not compute, or nothing here can.
    """
    wants = {
        "block statistics": plan.stats_lse is not None or plan.running is not None,
        "compensation": plan.compensate,
    }
    missing = [what for what, wanted in wants.items() if wanted]
    if missing:
        raise UsageError(
            f"8-bit attention computes no {' and no '.join(missing)}, which this method's plan "
            "asks for; use precision='native'"
        )
    mask = plan.mask
    reasons = reasons_8bit(impl, q, mask) if impl is not Impl.AUTO else []
    # Ragged blocks have no 8-bit kernel of any kind.
    reasons = reasons or reasons_8bit(Impl.REFERENCE, q, mask)
    if reasons:
        raise UsageError(f"8-bit attention: {'; '.join(reasons)}; or use precision='native'")
    return block_sparse_attention_8bit(q, k, v, mask, impl=impl)  # type: ignore[arg-type]


def attend_densely_8bit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to everything in 8 bits: (B, H, S, D) in and out."""
    return dense_attention_8bit(q, k, v).out
