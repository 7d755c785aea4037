import dataclasses

import pytest
import torch
from torch import Tensor

from vidsparse.kernels.attention_output import AttentionOutput, merge_attention
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_sparse_attention import (
    Impl,
    block_sparse_attention,
    unsupported_reasons,
)
from vidsparse.kernels.reference import block_mass_reference
from vidsparse.kernels.testing import (
    assert_as_exact_as_eager,
    poison_dropped_keys,
    random_block_mask,
    random_ragged_mask,
)

# The interpreter multiplies bfloat16 as integers: half stands in for it on the CPU.
CPU_CASES = [
    (Impl.REFERENCE, torch.float32),
    (Impl.TORCH, torch.float32),
    (Impl.TORCH, torch.bfloat16),
    (Impl.TRITON, torch.float32),
    (Impl.TRITON, torch.float16),
]
GPU_CASES = [
    (Impl.TORCH, torch.bfloat16),
    (Impl.TRITON, torch.bfloat16),
    (Impl.TRITON, torch.float16),
    (Impl.TRITON, torch.float32),
    (Impl.GLUON, torch.bfloat16),
    (Impl.GLUON, torch.float16),
]
IMPLS = [
    *(pytest.param("cpu", *case, id=f"cpu-{case[0]}-{case[1]}") for case in CPU_CASES),
    *(
        pytest.param("cuda", *case, id=f"cuda-{case[0]}-{case[1]}", marks=pytest.mark.gpu)
        for case in GPU_CASES
    ),
]
# B, H, Sq, Skv, D, block_q, block_kv, density: odd on purpose.
FIXED_SHAPES = [
    (2, 2, 100, 63, 64, 32, 16, 0.4),
    (1, 1, 130, 200, 64, 64, 64, 0.3),
    (1, 3, 1, 1, 64, 64, 64, 1.0),
    (2, 1, 257, 390, 128, 128, 128, 0.5),
    (1, 2, 300, 333, 96, 128, 32, 0.3),
    (1, 2, 200, 333, 64, 192, 128, 0.5),
    (1, 2, 70, 90, 40, 48, 24, 0.4),
]


def make_qkv(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    B, H, Sq, Skv, D = shape[:5]
    q, k, v = (
        torch.randn(B, H, S, D, generator=generator, device=generator.device).to(dtype)
        for S in (Sq, Skv, Skv)
    )
    return q, k, v


def run_poisoned(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | RaggedBlockMask, impl: Impl
) -> AttentionOutput:
    """Run with NaN in every key and value that nothing attends to."""
    if impl is not Impl.REFERENCE:
        k, v = poison_dropped_keys(k, mask), poison_dropped_keys(v, mask)
    return block_sparse_attention(q, k, v, mask, impl=impl)


def skip_if_unsupported(
    impl: Impl, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | RaggedBlockMask
) -> None:
    reasons = unsupported_reasons(impl, q, k, v, mask)
    if reasons and impl is Impl.GLUON:
        pytest.skip("; ".join(reasons))


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
@pytest.mark.parametrize("shape", FIXED_SHAPES, ids=str)
def test_fixed_blocks_match_the_reference(
    device: str, impl: Impl, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = make_qkv(shape, dtype, generator)
    B, H, Sq, Skv, _, block_q, block_kv, density = shape
    mask = random_block_mask(B, H, Sq, Skv, block_q=block_q, block_kv=block_kv, density=density,
                             generator=generator)  # fmt: skip
    skip_if_unsupported(impl, q, k, v, mask)
    assert_as_exact_as_eager(run_poisoned(q, k, v, mask, impl), q, k, v, mask)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
@pytest.mark.parametrize("shape", [(1, 2, 100, 130, 64), (2, 1, 300, 70, 128)], ids=str)
def test_ragged_blocks_match_the_reference(
    device: str, impl: Impl, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = make_qkv(shape, dtype, generator)
    mask = random_ragged_mask(*shape[:4], q_blocks=9, kv_blocks=14, density=0.4,
                              generator=generator)  # fmt: skip
    skip_if_unsupported(impl, q, k, v, mask)
    output = block_sparse_attention(q, k, v, mask, impl=impl)
    assert_as_exact_as_eager(output, q, k, v, mask)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
def test_rows_without_keys_and_full_rows(device: str, impl: Impl, dtype: torch.dtype) -> None:
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = make_qkv((1, 2, 600, 500, 64), dtype, generator)
    dense = torch.zeros(1, 2, 5, 4, dtype=torch.bool, device=device)
    dense[:, :, 1] = True
    dense[:, :, 2, 3] = True
    mask = BlockMask.from_dense(dense, block_q=128, block_kv=128, seq_q=600, seq_kv=500)
    skip_if_unsupported(impl, q, k, v, mask)
    output = block_sparse_attention(q, k, v, mask, impl=impl)
    assert output.lse is not None
    assert (output.out[:, :, :128] == 0).all()
    assert output.lse[:, :, :128].isneginf().all()
    assert_as_exact_as_eager(output, q, k, v, mask)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
def test_transposed_inputs_give_the_same(device: str, impl: Impl, dtype: torch.dtype) -> None:
    generator = torch.Generator(device).manual_seed(0)
    qkv = make_qkv((2, 3, 200, 200, 64), dtype, generator)
    mask = random_block_mask(2, 3, 200, 200, block_q=64, block_kv=64, density=0.5,
                             generator=generator)  # fmt: skip
    skip_if_unsupported(impl, *qkv, mask)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv]
    expected = block_sparse_attention(*qkv, mask, impl=impl)
    got = block_sparse_attention(*views, mask, impl=impl)
    assert torch.equal(got.out, expected.out)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
def test_large_logits_stay_finite(device: str, impl: Impl, dtype: torch.dtype) -> None:
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = make_qkv((1, 1, 130, 130, 64), dtype, generator)
    mask = random_block_mask(1, 1, 130, 130, block_q=64, block_kv=64, density=1.0,
                             generator=generator)  # fmt: skip
    skip_if_unsupported(impl, q, k, v, mask)
    output = block_sparse_attention(q, k + 10, v, mask, impl=impl)
    assert_as_exact_as_eager(output, q, k + 10, v, mask)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
def test_one_mask_serves_all_heads(device: str, impl: Impl, dtype: torch.dtype) -> None:
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = make_qkv((2, 2, 130, 130, 64), dtype, generator)
    for lead in ((1, 1), (1, 2), (2, 1)):
        mask = random_block_mask(*lead, 130, 130, block_q=64, block_kv=64, density=0.5,
                                 generator=generator)  # fmt: skip
        skip_if_unsupported(impl, q, k, v, mask)
        output = block_sparse_attention(q, k, v, mask, impl=impl)
        assert_as_exact_as_eager(output, q, k, v, mask)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
def test_split_lists_merge_into_the_whole(device: str, impl: Impl, dtype: torch.dtype) -> None:
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = make_qkv((1, 2, 200, 200, 64), dtype, generator)
    whole = random_block_mask(1, 2, 200, 200, block_q=64, block_kv=64, density=0.7,
                              generator=generator)  # fmt: skip
    skip_if_unsupported(impl, q, k, v, whole)
    odd = torch.arange(4, device=device) % 2 == 1
    parts = [
        BlockMask.from_dense(
            whole.to_dense() & keep, block_q=64, block_kv=64, seq_q=200, seq_kv=200
        )
        for keep in (odd, ~odd)
    ]
    outputs = [block_sparse_attention(q, k, v, part, impl=impl) for part in parts]
    wide = [dataclasses.replace(o, out=o.out.float()) for o in outputs]
    merged = merge_attention(wide)
    expected = block_sparse_attention(q, k, v, whole, impl=impl)
    torch.testing.assert_close(merged.lse, expected.lse, rtol=1e-3, atol=1e-3)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(merged.out, expected.out.float(), rtol=tolerance, atol=tolerance)


def test_lists_out_of_range_touch_no_foreign_memory(generator: torch.Generator) -> None:
    device = generator.device
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    q, k, v = make_qkv((1, 2, 200, 200, 64), dtype, generator)
    mask = random_block_mask(1, 2, 200, 200, block_q=64, block_kv=64, density=0.7,
                             generator=generator)  # fmt: skip
    mask.kv_indices.fill_(1 << 20)
    mask.kv_num_blocks.fill_(1 << 20)
    for impl in (Impl.TORCH, Impl.TRITON, Impl.GLUON):
        if not unsupported_reasons(impl, q, k, v, mask):
            block_sparse_attention(q, k, v, mask, impl=impl)
    if device.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize("impl", [Impl.TRITON, Impl.GLUON])
def test_repeated_runs_are_bitwise_equal(impl: Impl, gpu_generator: torch.Generator) -> None:
    q, k, v = make_qkv((1, 4, 5000, 5000, 128), torch.bfloat16, gpu_generator)
    mask = random_block_mask(1, 4, 5000, 5000, block_q=128, block_kv=128, density=0.3,
                             generator=gpu_generator)  # fmt: skip
    skip_if_unsupported(impl, q, k, v, mask)
    first = block_sparse_attention(q, k, v, mask, impl=impl)
    for _ in range(20):
        again = block_sparse_attention(q, k, v, mask, impl=impl)
        assert torch.equal(again.out, first.out)
        assert torch.equal(again.lse, first.lse)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", [Impl.TRITON, Impl.GLUON])
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("block_kv", [16, 32, 64, 128])
def test_real_lengths(impl: Impl, D: int, block_kv: int, gpu_generator: torch.Generator) -> None:
    q, k, v = make_qkv((1, 2, 4200, 7777, D), torch.bfloat16, gpu_generator)
    mask = random_block_mask(1, 2, 4200, 7777, block_q=128, block_kv=block_kv, density=0.2,
                             generator=gpu_generator)  # fmt: skip
    skip_if_unsupported(impl, q, k, v, mask)
    assert_as_exact_as_eager(run_poisoned(q, k, v, mask, impl), q, k, v, mask)


@pytest.mark.gpu
def test_attention_never_waits_for_the_device(gpu_generator: torch.Generator) -> None:
    q, k, v = make_qkv((1, 2, 300, 300, 64), torch.bfloat16, gpu_generator)
    mask = random_block_mask(1, 2, 300, 300, block_q=64, block_kv=64, density=0.5,
                             generator=gpu_generator)  # fmt: skip
    torch.cuda.set_sync_debug_mode("error")
    try:
        for impl in (Impl.TRITON, Impl.GLUON):
            if not unsupported_reasons(impl, q, k, v, mask):
                block_sparse_attention(q, k, v, mask, impl=impl)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bad_inputs_name_every_reason() -> None:
    q = torch.randn(1, 2, 64, 16)
    mask = BlockMask.full(block_q=32, block_kv=32, seq_q=64, seq_kv=96)
    with pytest.raises(ValueError, match="give one floating dtype; the mask is for 64 x 96"):
        block_sparse_attention(q, q.half(), q, mask)
    mask = BlockMask.full(block_q=32, block_kv=32, seq_q=64, seq_kv=64)
    strided = torch.randn(1, 2, 16, 64).mT
    with pytest.raises(ValueError, match="q's last dimension has stride 64"):
        block_sparse_attention(strided, q, q, mask)
    with pytest.raises(ValueError, match="every dimension must be at least 1"):
        block_sparse_attention(q, q[:, :, :0], q[:, :, :0], mask)


def test_an_explicit_impl_is_refused_not_replaced() -> None:
    q = torch.randn(1, 1, 64, 64)
    mask = BlockMask.full(block_q=64, block_kv=64, seq_q=64, seq_kv=64)
    with pytest.raises(ValueError, match=r"impl='gluon' cannot run here: .*sm_90"):
        block_sparse_attention(q, q, q, mask, impl=Impl.GLUON)


def test_merging_without_lse_is_refused() -> None:
    with pytest.raises(ValueError, match="each with its lse"):
        merge_attention([AttentionOutput(torch.zeros(1, 1, 1, 1), None)])


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
@pytest.mark.parametrize("blocks", [(64, 128, 64), (128, 128, 128), (64, 32, 64), (192, 128, 64)])
def test_block_stats_are_the_mass_of_kept_blocks(
    device: str, impl: Impl, dtype: torch.dtype, blocks: tuple[int, int, int]
) -> None:
    block_q, block_kv, D = blocks
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = make_qkv((2, 2, 300, 333, D), dtype, generator)
    mask = random_block_mask(2, 2, 300, 333, block_q=block_q, block_kv=block_kv, density=0.5,
                             generator=generator)  # fmt: skip
    skip_if_unsupported(impl, q, k, v, mask)
    earlier = torch.logsumexp((q.float() @ k.float().mT) * D**-0.5, -1) + 0.5
    earlier[:, :, 3] = -torch.inf
    output = block_sparse_attention(q, k, v, mask, impl=impl, stats_lse=earlier)
    edges = [
        torch.arange(-(-s // b) + 1).mul(b).clamp(max=s)
        for s, b in ((300, block_q), (333, block_kv))
    ]
    expected = block_mass_reference(
        q, k, earlier.masked_fill(earlier.isneginf(), torch.inf), *edges
    )
    expected = expected.masked_fill(~mask.to_dense(), 0)
    assert output.block_stats is not None
    torch.testing.assert_close(output.block_stats.double(), expected, rtol=2e-3, atol=1e-3)
    plain = block_sparse_attention(q, k, v, mask, impl=impl)
    assert plain.block_stats is None
    torch.testing.assert_close(output.out, plain.out)
