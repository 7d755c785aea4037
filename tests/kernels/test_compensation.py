import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_means import key_value_means, log_sizes
from vidsparse.kernels.block_sparse_attention import (
    Impl,
    block_sparse_attention,
    unsupported_reasons,
)
from vidsparse.kernels.reference import attention_reference
from vidsparse.kernels.testing import (
    assert_as_exact_as_eager,
    random_block_mask,
    random_ragged_mask,
)
from vidsparse.kernels.triton_block_means import key_value_means_triton, mean_tiles

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
SHAPES = [
    (2, 2, 100, 63, 64, 32, 16, 0.4),
    (1, 1, 130, 200, 64, 64, 64, 0.3),
    (1, 1, 1, 1, 64, 64, 64, 0.0),
    (1, 1, 150, 390, 128, 128, 128, 0.5),
    (1, 1, 200, 333, 96, 128, 32, 0.1),
    (1, 2, 200, 333, 64, 192, 128, 0.5),
    (1, 2, 70, 90, 40, 48, 24, 0.4),
    (1, 1, 70, 2100, 16, 64, 16, 0.02),
]


def make_case(shape, dtype, device):
    B, H, Sq, Skv, D, block_q, block_kv, density = shape
    g = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(B, H, S, D, generator=g, device=device).to(dtype) for S in (Sq, Skv, Skv)
    )
    mask = random_block_mask(B, H, Sq, Skv, block_q=block_q, block_kv=block_kv, density=density,
                             generator=g)  # fmt: skip
    return q, k, v, mask


def skip_if_unsupported(impl, q, k, v, mask):
    reasons = unsupported_reasons(impl, q, k, v, mask)
    if reasons and impl is Impl.GLUON:
        pytest.skip("; ".join(reasons))


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fixed_blocks_match_the_reference(device, impl, dtype, shape):
    q, k, v, mask = make_case(shape, dtype, device)
    skip_if_unsupported(impl, q, k, v, mask)
    output = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True)
    assert_as_exact_as_eager(output, q, k, v, mask, compensate=True)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
@pytest.mark.parametrize("density", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(1, 2, 100, 130, 64), (1, 1, 300, 70, 128)], ids=str)
def test_ragged_blocks_match_the_reference(device, impl, dtype, shape, density):
    g = torch.Generator(device).manual_seed(0)
    q, k, v, _ = make_case((*shape, 64, 64, 1.0), dtype, device)
    mask = random_ragged_mask(*shape[:4], q_blocks=9, kv_blocks=14, density=density, generator=g)
    # Its neighbour takes the tokens of one block.
    mask.kv_offsets[..., 5] = mask.kv_offsets[..., 4]
    skip_if_unsupported(impl, q, k, v, mask)
    output = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True)
    assert_as_exact_as_eager(output, q, k, v, mask, compensate=True)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
def test_blocks_of_equal_tokens_are_compensated_exactly(device, impl, dtype):
    q, k, v, mask = make_case((1, 2, 200, 300, 64, 64, 32, 0.3), dtype, device)
    k, v = (x[:, :, ::32].repeat_interleave(32, 2)[:, :, :300] for x in (k, v))
    skip_if_unsupported(impl, q, k, v, mask)
    output = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True)
    assert_as_exact_as_eager(output, q, k, v, None)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_mask_that_keeps_everything_is_untouched(device, impl, dtype, ragged):
    q, k, v, mask = make_case((1, 2, 130, 300, 64, 64, 32, 1.0), dtype, device)
    if ragged:
        g = torch.Generator(device).manual_seed(0)
        mask = random_ragged_mask(1, 2, 130, 300, q_blocks=3, kv_blocks=9, density=1.1, generator=g)
    skip_if_unsupported(impl, q, k, v, mask)
    plain = block_sparse_attention(q, k, v, mask, impl=impl)
    output = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True)
    assert torch.equal(output.out, plain.out)
    assert torch.equal(output.lse, plain.lse)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
def test_without_kept_blocks_queries_attend_to_the_means(device, impl, dtype):
    q, k, v, mask = make_case((1, 2, 130, 300, 64, 64, 32, 0.0), dtype, device)
    skip_if_unsupported(impl, q, k, v, mask)
    output = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True)
    k_mean, v_mean = (
        torch.stack([part.double().mean(2) for part in x.split(32, 2)], 2) for x in (k, v)
    )
    sizes = torch.tensor([32.0] * 9 + [12.0], device=device)
    scores = q.double() @ k_mean.mT / 8 + sizes.log()
    tolerance = {"rtol": 0.02, "atol": 0.01} if dtype is not torch.float32 else {}
    expected = torch.softmax(scores, -1) @ v_mean
    torch.testing.assert_close(output.out, expected.to(dtype), **tolerance)
    lse = torch.logsumexp(scores, -1).float()
    torch.testing.assert_close(output.lse, lse, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
def test_one_mask_serves_all_heads(device, impl, dtype):
    q, k, v, _ = make_case((2, 2, 70, 70, 32, 64, 64, 1.0), dtype, device)
    g = torch.Generator(device).manual_seed(0)
    for lead in ((1, 1), (1, 2), (2, 1)):
        mask = random_block_mask(*lead, 70, 70, block_q=64, block_kv=16, density=0.3,
                                 generator=g)  # fmt: skip
        skip_if_unsupported(impl, q, k, v, mask)
        output = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True)
        assert_as_exact_as_eager(output, q, k, v, mask, compensate=True)


@settings(max_examples=12, deadline=None)
@given(
    seqs=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    blocks=st.tuples(st.sampled_from([16, 48, 64]), st.sampled_from([8, 16, 40, 64])),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 99),
)
def test_any_shape_matches_the_reference(seqs, blocks, density, seed):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 2, S, 16, generator=g) for S in (seqs[0], seqs[1], seqs[1]))
    masks: list[BlockMask | RaggedBlockMask] = [
        random_block_mask(1, 2, *seqs, block_q=blocks[0], block_kv=blocks[1], density=density,
                          generator=g),
        random_ragged_mask(1, 2, *seqs, q_blocks=5, kv_blocks=7, density=density, generator=g),
    ]  # fmt: skip
    for mask in masks:
        output = block_sparse_attention(q, k, v, mask, impl=Impl.TORCH, compensate=True)
        exact = attention_reference(q, k, v, mask, compensate=True)
        torch.testing.assert_close(output.out, exact.out.float())
        torch.testing.assert_close(output.lse, exact.lse)


def test_means_use_the_true_size_of_the_last_block(generator):
    device = generator.device
    k, v = torch.randn(2, 1, 2, 70, 8, generator=generator, device=device)
    mask = random_block_mask(1, 2, 70, 70, block_q=32, block_kv=32, density=0.5,
                             generator=generator)  # fmt: skip
    means = key_value_means(k, v, mask)
    torch.testing.assert_close(means.k[:, :, 2], k[:, :, 64:].mean(2))
    torch.testing.assert_close(means.v[:, :, 1], v[:, :, 32:64].mean(2))
    sizes = torch.tensor([32.0, 32.0, 6.0], device=device)
    torch.testing.assert_close(means.log_size.exp(), sizes.view(1, 1, 3))


def test_means_of_empty_blocks_are_zero_and_weigh_nothing(generator):
    device = generator.device
    k, v = torch.randn(2, 1, 1, 10, 8, generator=generator, device=device)
    sizes = torch.tensor([[[4, 0, 6]]], device=device)
    kept = torch.zeros(1, 1, 1, 3, dtype=torch.bool, device=device)
    rows = torch.tensor([[[10]]], device=device)
    mask = RaggedBlockMask.from_sizes(kept, rows, sizes, seq_q=10, seq_kv=10)
    means = key_value_means(k, v, mask)
    assert (means.k[:, :, 1] == 0).all()
    assert means.log_size[0, 0, 1] == -torch.inf
    torch.testing.assert_close(means.v[:, :, 2], v[:, :, 4:].mean(2))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 300, 96), (1, 1, 50, 12)], ids=str)
def test_triton_means_equal_plain_averages(generator, shape, ragged):
    B, H, S, D = shape
    device = generator.device
    k, v = torch.randn(2, B, H, S, D + 4, generator=generator, device=device).half()[..., :D]
    if ragged:
        mask = random_ragged_mask(1, H, S, S, q_blocks=3, kv_blocks=9, density=0.5,
                                  generator=generator)  # fmt: skip
        edges = mask.kv_offsets.expand(B, H, -1).tolist()
    else:
        mask = random_block_mask(1, 1, S, S, block_q=64, block_kv=40, density=0.5,
                                 generator=generator)  # fmt: skip
        edges = [[[*range(0, S, 40), S]] * H] * B
    means = key_value_means_triton(k, v, mask)
    for x, mean in zip((k, v), means, strict=True):
        for b, h in itertools.product(range(B), range(H)):
            averages = [
                x[b, h, first:last].float().sum(0) / max(1, last - first)
                for first, last in itertools.pairwise(edges[b][h])
            ]
            expected = torch.stack(averages).half()
            torch.testing.assert_close(mean[b, h], expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("ragged", [False, True])
def test_bias_holds_log_sizes_and_excludes_kept_blocks(generator, ragged):
    device = generator.device
    k, v = torch.randn(2, 1, 2, 520, 16, generator=generator, device=device)
    if ragged:
        mask = random_ragged_mask(1, 2, 100, 520, q_blocks=3, kv_blocks=130, density=0.5,
                                  generator=generator)  # fmt: skip
        mask.mask[0, 1, 2] = True
    else:
        kept = torch.rand(1, 2, 2, 130, generator=generator, device=device) < 0.5
        kept[0, 1, 1] = True
        mask = BlockMask.from_dense(kept, block_q=64, block_kv=4, seq_q=100, seq_kv=520)
    tiles = mean_tiles(k, v, mask, 0.3)
    N = mask.num_kv_blocks
    sizes = log_sizes(mask)[:, :, None].expand(mask.to_dense().shape)
    counts = ~mask.to_dense() & ~sizes.isneginf()
    bias = tiles.bias[..., :N] * 0.3
    torch.testing.assert_close(bias[counts], sizes[counts])
    assert (bias[~counts] < -1e28).all()
    assert tiles.bias.shape[-1] == 256
    assert (tiles.bias[..., N:] < -1e28).all()
    assert tiles.num_means.equal(torch.where(counts.any(-1), N, 0).int())
    assert (tiles.num_means == 0).sum() == 1


@pytest.mark.parametrize("impl", [Impl.REFERENCE, Impl.TORCH])
@pytest.mark.parametrize("poison", ["k", "v"])
def test_a_nan_reaches_every_query(impl, poison):
    q, k, v, mask = make_case((1, 1, 130, 300, 64, 64, 32, 0.3), torch.float32, "cpu")
    {"k": k, "v": v}[poison][:, :, 100] = torch.nan
    output = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True)
    assert output.out.isnan().any(-1).all()


def test_block_stats_count_kept_blocks_only():
    q, k, v, mask = make_case((1, 2, 130, 300, 64, 64, 32, 0.3), torch.float32, "cpu")
    earlier = torch.logsumexp(q @ k.mT / 8, -1)
    plain, output = (
        block_sparse_attention(
            q, k, v, mask, impl=Impl.TORCH, stats_lse=earlier, compensate=compensate
        )
        for compensate in (False, True)
    )
    assert torch.equal(plain.block_stats, output.block_stats)


def tangents_of(q, mask):
    return 2 * q.new_zeros(*q.shape[:2], mask.num_kv_blocks, q.shape[3]).float().normal_(
        generator=torch.Generator(q.device).manual_seed(3)
    )


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
@pytest.mark.parametrize("ragged", [False, True])
def test_tangents_match_the_reference(device, impl, dtype, ragged):
    q, k, v, mask = make_case((2, 2, 130, 300, 64, 64, 32, 0.3), dtype, device)
    if ragged:
        g = torch.Generator(device).manual_seed(0)
        mask = random_ragged_mask(2, 2, 130, 300, q_blocks=5, kv_blocks=14, density=0.3,
                                  generator=g)  # fmt: skip
    skip_if_unsupported(impl, q, k, v, mask)
    tangents = tangents_of(q, mask)
    output = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True, tangents=tangents)
    assert_as_exact_as_eager(output, q, k, v, mask, compensate=True, tangents=tangents)


@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
def test_compensation_is_exact_for_its_tangents(device, impl, dtype):
    # Every query equals the tangents: nothing is lost although nearly everything is skipped.
    q, k, v, mask = make_case((1, 2, 130, 300, 64, 64, 32, 0.1), dtype, device)
    q = q[:, :, :1].expand_as(q).contiguous()
    skip_if_unsupported(impl, q, k, v, mask)
    tangents = q[:, :, :1].float().expand(-1, -1, mask.num_kv_blocks, -1).contiguous()
    output = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True, tangents=tangents)
    assert_as_exact_as_eager(output, q, k, v, None)


def test_tangents_that_do_not_fit_are_refused():
    q, k, v, mask = make_case((1, 2, 130, 300, 64, 64, 32, 0.3), torch.float32, "cpu")
    tangents = tangents_of(q, mask)
    with pytest.raises(ValueError, match="compensate=True"):
        block_sparse_attention(q, k, v, mask, tangents=tangents)
    with pytest.raises(ValueError, match="tangents are"):
        block_sparse_attention(q, k, v, mask, compensate=True, tangents=tangents[..., :8])
    g = torch.Generator().manual_seed(0)
    shared = random_block_mask(1, 1, 130, 300, block_q=64, block_kv=32, density=0.3, generator=g)
    with pytest.raises(ValueError, match="the mask leads with"):
        block_sparse_attention(q, k, v, shared, compensate=True, tangents=tangents)


@pytest.mark.gpu
@pytest.mark.parametrize("ragged", [False, True])
def test_compensation_never_waits_for_the_device(gpu_generator, ragged):
    q, k, v, mask = make_case((1, 2, 300, 300, 64, 64, 64, 0.3), torch.bfloat16, "cuda")
    if ragged:
        mask = random_ragged_mask(1, 2, 300, 300, q_blocks=5, kv_blocks=9, density=0.3,
                                  generator=gpu_generator)  # fmt: skip
    impls = [i for i in (Impl.TRITON, Impl.GLUON) if not unsupported_reasons(i, q, k, v, mask)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for impl in impls:
            block_sparse_attention(q, k, v, mask, impl=impl, compensate=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert impls


@pytest.mark.gpu
@pytest.mark.parametrize("impl", [Impl.TRITON, Impl.GLUON])
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("block_kv", [64, 128])
def test_real_lengths(impl, D, block_kv):
    q, k, v, mask = make_case((1, 2, 4200, 20000, D, 128, block_kv, 0.2), torch.bfloat16, "cuda")
    skip_if_unsupported(impl, q, k, v, mask)
    first = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True)
    assert_as_exact_as_eager(first, q, k, v, mask, compensate=True)
    for _ in range(5):
        again = block_sparse_attention(q, k, v, mask, impl=impl, compensate=True)
        assert torch.equal(again.out, first.out)
