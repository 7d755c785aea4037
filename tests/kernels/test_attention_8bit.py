import pytest
import torch
from torch import Tensor

from vidsparse.kernels.attention_8bit import (
    block_sparse_attention_8bit,
    dense_attention_8bit,
    reasons_8bit,
)
from vidsparse.kernels.attention_output import AttentionOutput, merge_attention
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_sparse_attention import Impl
from vidsparse.kernels.quantize import quantize_qkv_torch
from vidsparse.kernels.reference import attention_reference
from vidsparse.kernels.reference_8bit import attend_quantized_reference
from vidsparse.kernels.testing import random_block_mask

# Relative L2 error against float64 on inputs that were not quantised.
LARGEST_ERROR = 0.05
IMPLS = [
    pytest.param("cpu", Impl.REFERENCE, id="cpu-reference"),
    pytest.param("cpu", Impl.TRITON, id="cpu-triton"),
    pytest.param("cuda", Impl.REFERENCE, id="cuda-reference", marks=pytest.mark.gpu),
    pytest.param("cuda", Impl.TRITON, id="cuda-triton", marks=pytest.mark.gpu),
    pytest.param("cuda", Impl.GLUON, id="cuda-gluon", marks=pytest.mark.gpu),
]
# B, H, Sq, Skv, D, block_q, block_kv, density: odd on purpose.
SHAPES = [
    (1, 2, 300, 333, 128, 128, 128, 0.5),
    (2, 2, 130, 200, 64, 64, 64, 0.4),
    (1, 1, 257, 390, 96, 128, 32, 0.4),
    (1, 3, 1, 1, 64, 64, 32, 1.0),
    (1, 2, 200, 1300, 128, 128, 64, 0.2),
]


def make_qkv(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    B, H, Sq, Skv, D = shape[:5]
    device = generator.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    q, k, v = (
        torch.randn(B, H, S, D, generator=generator, device=device).to(dtype)
        for S in (Sq, Skv, Skv)
    )
    return q, k, v


def make_mask(shape: tuple[int, ...], generator: torch.Generator) -> BlockMask:
    B, H, Sq, Skv, _, block_q, block_kv = shape[:7]
    return random_block_mask(
        B, H, Sq, Skv, block_q=block_q, block_kv=block_kv, density=shape[7], generator=generator
    )


def relative_error(got: AttentionOutput, want: AttentionOutput) -> float:
    return float((got.out.double() - want.out.double()).norm() / want.out.double().norm())


def skip_without(impl: Impl, q: Tensor, mask: BlockMask) -> None:
    reasons = reasons_8bit(impl, q, mask)
    if reasons:
        pytest.skip("; ".join(reasons))


@pytest.mark.parametrize(("device", "impl"), IMPLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_close_to_exact_attention(device: str, impl: Impl, shape: tuple[int, ...]) -> None:
    generator = torch.Generator(device).manual_seed(1)
    q, k, v = make_qkv(shape, generator)
    # An outlying channel, and one with a mean.
    k[..., 3] *= 8
    k[..., 7] += 12
    mask = make_mask(shape, generator)
    skip_without(impl, q, mask)
    got = block_sparse_attention_8bit(q, k, v, mask, impl=impl)
    want = attention_reference(q, k, v, mask)
    assert got.out.dtype == q.dtype
    if want.out.any():
        assert relative_error(got, want) < LARGEST_ERROR
    assert got.lse is not None
    assert want.lse is not None
    torch.testing.assert_close(got.lse, want.lse, rtol=0, atol=0.1)
    empty = want.lse.isneginf()
    assert bool((got.out[empty] == 0).all())


@pytest.mark.parametrize(("device", "impl"), IMPLS)
def test_rows_without_keys(device: str, impl: Impl) -> None:
    generator = torch.Generator(device).manual_seed(2)
    q, k, v = make_qkv((1, 2, 300, 200, 64), generator)
    dense = torch.zeros(1, 2, 3, 2, dtype=torch.bool, device=device)
    dense[:, 0, 1, 1] = True
    mask = BlockMask.from_dense(dense, block_q=128, block_kv=128, seq_q=300, seq_kv=200)
    skip_without(impl, q, mask)
    got = block_sparse_attention_8bit(q, k, v, mask, impl=impl)
    assert got.lse is not None
    filled = torch.zeros(1, 2, 300, dtype=torch.bool, device=device)
    filled[:, 0, 128:256] = True
    assert torch.equal(got.lse.isfinite(), filled)
    assert bool((got.lse[~filled] == -torch.inf).all())
    assert not got.out[~filled].any()


@pytest.mark.parametrize(("device", "impl"), IMPLS)
def test_halves_of_a_mask_merge_to_the_whole(device: str, impl: Impl) -> None:
    generator = torch.Generator(device).manual_seed(3)
    q, k, v = make_qkv((1, 2, 150, 390, 64), generator)
    dense = torch.rand(1, 2, 2, 7, generator=generator, device=device) < 0.5
    sizes = {"block_q": 128, "block_kv": 64, "seq_q": 150, "seq_kv": 390}
    whole = BlockMask.full(**sizes, device=device)
    skip_without(impl, q, whole)
    parts = [
        block_sparse_attention_8bit(q, k, v, BlockMask.from_dense(m, **sizes), impl=impl)
        for m in (dense, ~dense)
    ]
    got, want = merge_attention(parts), block_sparse_attention_8bit(q, k, v, whole, impl=impl)
    assert relative_error(got, want) < LARGEST_ERROR
    assert got.lse is not None
    assert want.lse is not None
    torch.testing.assert_close(got.lse, want.lse, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("device", "impl"), IMPLS)
def test_dense_is_the_full_mask(device: str, impl: Impl) -> None:
    generator = torch.Generator(device).manual_seed(4)
    q, k, v = make_qkv((1, 1, 100, 260, 64), generator)
    skip_without(impl, q, BlockMask.full(block_q=128, block_kv=128, seq_q=100, seq_kv=260))
    got = dense_attention_8bit(q, k, v, scale=0.2, impl=impl)
    want = attention_reference(q, k, v, None, scale=0.2)
    assert relative_error(got, want) < LARGEST_ERROR


def test_triton_agrees_with_its_twin() -> None:
    from vidsparse.kernels.triton_attention_8bit import attend_quantized_triton

    generator = torch.Generator().manual_seed(5)
    shape = (1, 2, 200, 300, 64, 128, 64, 0.5)
    q, k, v = make_qkv(shape, generator)
    mask = make_mask(shape, generator)
    x = quantize_qkv_torch(q, k, v, 64, 0.125)
    got = attend_quantized_triton(x, mask, torch.full_like(q, torch.nan))
    want = attend_quantized_reference(x, mask, torch.float32)
    # Weights are rounded relative to another maximum.
    assert relative_error(got, want) < 0.035
    assert got.lse is not None
    assert want.lse is not None
    torch.testing.assert_close(got.lse, want.lse, rtol=1e-4, atol=1e-4)


def test_refusals_say_what_to_do() -> None:
    q = torch.zeros(1, 1, 64, 64)
    mask = BlockMask.full(block_q=64, block_kv=48, seq_q=64, seq_kv=64)
    with pytest.raises(ValueError, match=r"blocks of 48 keys; use one of \(32, 64, 128\)"):
        block_sparse_attention_8bit(q, q, q, mask, impl=Impl.TRITON)
    with pytest.raises(ValueError, match="torch has no 8-bit attention; use gluon"):
        dense_attention_8bit(q, q, q, impl=Impl.TORCH)
    with pytest.raises(ValueError, match="scale=-1"):
        dense_attention_8bit(q, q, q, scale=-1)
    ragged = RaggedBlockMask.from_sizes(
        torch.ones(1, 1, 1, 1, dtype=torch.bool),
        *(torch.full((1, 1, 1), 64, dtype=torch.int32),) * 2,
        seq_q=64,
        seq_kv=64,
    )
    assert "varying size" in reasons_8bit(Impl.REFERENCE, q, ragged)[0]


@pytest.mark.gpu
@pytest.mark.parametrize("impl", [Impl.TRITON, Impl.GLUON])
def test_long_rows_keep_their_sums(impl: Impl, gpu_generator: torch.Generator) -> None:
    """8-bit products cut a sum to 14 bits: summed over 64k positive values they would drift."""
    skews = []
    for tokens in (128, 2048, 65536):
        q, k, v = make_qkv((1, 1, 128, tokens, 128), gpu_generator)
        got = dense_attention_8bit(q, k, v.abs(), impl=impl)
        want = attention_reference(q, k, v.abs(), None)
        skews.append(float((got.out.double() / want.out).mean()) - 1)
    assert relative_error(got, want) < 0.01
    # A tile of 128 keys takes four products of 32, whose 33 terms each lose half of 2^-13 of the
    # sum so far, which grows by quarters: at most 33 / 2 * 2^-13 * (1 + 2 + 3 + 4) / 4 = 0.5 %.
    assert max(map(abs, skews)) < 5e-3
    # Tiles are added up in float32, so more keys lose no more.
    assert abs(skews[2]) < abs(skews[0]) + 1e-3


@pytest.mark.gpu
def test_gluon_is_bitwise_the_same_in_any_launch_order(
    gpu_generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidsparse.kernels import triton_lists

    shape = (1, 4, 2000, 2000, 128, 128, 128, 0.4)
    q, k, v = make_qkv(shape, gpu_generator)
    mask = make_mask(shape, gpu_generator)
    skip_without(Impl.GLUON, q, mask)
    first = block_sparse_attention_8bit(q, k, v, mask, impl=Impl.GLUON).out
    order = triton_lists.launch_order
    for _ in range(5):
        monkeypatch.setattr(
            triton_lists,
            "launch_order",
            lambda *a: (o := order(*a))[torch.randperm(len(o), device=o.device)].contiguous(),
        )
        assert torch.equal(block_sparse_attention_8bit(q, k, v, mask, impl=Impl.GLUON).out, first)


@pytest.mark.gpu
def test_needs_no_host_synchronisation(gpu_generator: torch.Generator) -> None:
    shape = (1, 2, 1000, 1000, 128, 128, 128, 0.4)
    q, k, v = make_qkv(shape, gpu_generator)
    mask = make_mask(shape, gpu_generator)
    block_sparse_attention_8bit(q, k, v, mask)
    torch.cuda.set_sync_debug_mode("error")
    try:
        block_sparse_attention_8bit(q, k, v, mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")
