"""What the kernel bench times for a case: attention by implementation, and what must run before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vidsparse.kernels.attention_8bit import attend_quantized, reasons_8bit
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_sparse_attention import (
    AttentionOutput,
    Impl,
    block_sparse_attention,
    unsupported_reasons,
)
from vidsparse.kernels.quantize import quantize_qkv

# Relative L2 error of the sampled rows against float64 that a timed kernel may have: several times
# what rounding the weights to the dtype costs, far below what one wrong block costs.
_LARGEST_ERROR = {torch.bfloat16: 0.01, torch.float16: 0.002, torch.float32: 1e-4}
_LARGEST_8BIT_ERROR = 0.05


@dataclass(frozen=True)
class Contender:
    """One implementation of a case.

    Args:
        attend: the kernel alone.
        largest_error: relative error up to which its time counts.
        quantize: rounding to 8 bits, which every call must do first; None in 16 bits.
    """

    attend: Callable[[], AttentionOutput]
    largest_error: float
    quantize: Callable[[], object] | None = None


def contenders(
    bits: int,
    impls: Sequence[Impl],
    qkv: tuple[Tensor, Tensor, Tensor],
    mask: BlockMask | RaggedBlockMask,
) -> dict[Impl, Contender]:
    """Return the implementations that can take a case.

    Args:
        bits: 16, or 8 for 8-bit attention.
        impls: implementations asked for.
        qkv: tensors (1, H, S, D).
        mask: kept blocks.
    """
    if bits == 8:
        return _in_8_bits(impls, qkv, mask)
    return {
        impl: Contender(
            partial(block_sparse_attention, *qkv, mask, impl=impl), _LARGEST_ERROR[qkv[0].dtype]
        )
        for impl in impls
        if not unsupported_reasons(impl, *qkv, mask)
    }


def _in_8_bits(
    impls: Sequence[Impl], qkv: tuple[Tensor, Tensor, Tensor], mask: BlockMask | RaggedBlockMask
) -> dict[Impl, Contender]:
    fitting = [impl for impl in impls if not reasons_8bit(impl, qkv[0], mask)]
    if not fitting or isinstance(mask, RaggedBlockMask):
        return {}
    quantize = partial(quantize_qkv, *qkv, block_kv=mask.block_kv)
    rounded = quantize()
    return {
        impl: Contender(
            partial(attend_quantized, rounded, mask, qkv[0], impl=impl),
            _LARGEST_8BIT_ERROR,
            quantize,
        )
        for impl in fitting
    }
