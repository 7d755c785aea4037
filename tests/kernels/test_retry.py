from dataclasses import replace

import pytest
import torch

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.hopper import choose_config, gluon_reasons
from vidsparse.kernels.reference import attention_reference, block_mass_reference
from vidsparse.kernels.testing import assert_as_exact_as_eager, random_block_mask, random_sizes


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("block_kv", [16, 128])
def test_only_tiles_with_nan_are_attended_to_again(
    generator: torch.Generator, block_kv: int, compensate: bool
) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_block_means import mean_tiles
    from vidsparse.kernels.triton_retry import attend_again

    device = generator.device
    q, k, v = (
        torch.randn(2, 2, S, 40, generator=generator, device=device).half() for S in (200, 190, 190)
    )
    mask = random_block_mask(
        2, 1, 200, 190, block_q=64, block_kv=block_kv, density=0.6, generator=generator
    )
    want = attention_reference(q, k, v, mask, scale=0.3, compensate=compensate)
    means = mean_tiles(k, v, mask, 0.3) if compensate else None
    assert want.lse is not None
    out, lse = want.out.to(q.dtype), want.lse.clone()
    # One row of the second and of the last tile; the last one is partial.
    for b, h, row in ((0, 1, 100), (1, 0, 199)):
        lse[b, h, row] = torch.nan
        out[b, h, row // 64 * 64 : row // 64 * 64 + 64] = torch.nan
    out[1, 1, :64] = 7
    attend_again(q, k, v, out, lse, mask, 0.3, means=means)
    assert bool((out[1, 1, :64] == 7).all())
    out[1, 1, :64] = want.out[1, 1, :64].to(q.dtype)
    got = AttentionOutput(out, lse)
    assert_as_exact_as_eager(got, q, k, v, mask, scale=0.3, compensate=compensate)


def ragged_mask(S: int, generator: torch.Generator) -> RaggedBlockMask:
    # Even ones: the signs of ``rising_qkv`` take turns within a block.
    sizes = [2 * random_sizes(1, 2, blocks, S // 2, generator=generator) for blocks in (5, 11)]
    kept = torch.rand(1, 2, 5, 11, generator=generator, device=generator.device) < 0.6
    return RaggedBlockMask.from_sizes(kept, *sizes, seq_q=S, seq_kv=S)


@pytest.mark.parametrize("compensate", [False, True])
def test_only_ragged_tiles_with_nan_are_attended_to_again(
    generator: torch.Generator, compensate: bool
) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_block_means import mean_tiles
    from vidsparse.kernels.triton_ragged_lists import chunk_lists, ordered_query_tiles
    from vidsparse.kernels.triton_retry import attend_ragged_again

    device = generator.device
    q, k, v = (
        torch.randn(1, 2, 300, 40, generator=generator, device=device).half() for _ in range(3)
    )
    mask = ragged_mask(300, generator)
    want = attention_reference(q, k, v, mask, scale=0.3, compensate=compensate)
    assert want.lse is not None
    lists = chunk_lists(mask, 16, wide=64)
    assert int(lists.num_wide.max()) > 0
    tiles = ordered_query_tiles(mask.q_offsets, lists, 300, 64, 4)
    out, lse = want.out.to(q.dtype), want.lse.clone()
    # Head 0: the first tile, whole; head 1: one row of each tile, which is done as a whole.
    for h, step in ((0, 1), (1, 64)):
        firsts = zip(tiles.first_row[0, h].tolist(), tiles.end_row[0, h].tolist(), strict=True)
        for first, end in list(firsts)[: 1 if h == 0 else None]:
            lse[0, h, first : min(first + 64, end) : step] = torch.nan
            out[0, h, first : min(first + 64, end)] = torch.nan
    assert bool(lse.isnan().any())
    means = mean_tiles(k, v, mask, 0.3) if compensate else None
    attend_ragged_again(q, k, v, out, lse, lists, tiles, 0.3, rows=64, wide=64, means=means)
    got = AttentionOutput(out, lse)
    assert_as_exact_as_eager(got, q, k, v, mask, scale=0.3, compensate=compensate)


@pytest.mark.gpu
@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("D", [64, 128])
def test_rising_logits_cost_no_exactness_in_variable_blocks(
    gpu_generator: torch.Generator, D: int, compensate: bool
) -> None:
    from vidsparse.kernels.hopper import attend_ragged_gluon

    S = 2000
    q, k, v = rising_qkv(S, D, gpu_generator)
    mask = ragged_mask(S, gpu_generator)
    if gluon_reasons(q, k, v, mask):
        pytest.skip("; ".join(gluon_reasons(q, k, v, mask)))
    got = attend_ragged_gluon(q, k, v, mask, scale=D**-0.5, compensate=compensate)
    assert_as_exact_as_eager(got, q, k, v, mask, compensate=compensate)


def rising_qkv(
    S: int, D: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw tokens of two heads; the logits of the second rise far from the last key on."""
    q, k, v = (
        torch.randn(1, 2, S, D, generator=generator, device="cuda").bfloat16() for _ in range(3)
    )
    # Far enough for weights of more than 2^128. Signs take turns, so that means of blocks, which
    # are rounded to bfloat16, stay small.
    rise = torch.arange(S, 0, -1).cuda() // 2 * 2 * torch.tensor([1, -1]).cuda().repeat(S // 2)
    k[:, 1] = k[:, 1] + 6 * q[:, 1].mean(1, keepdim=True) * rise[:, None]
    return q, k, v


@pytest.mark.gpu
@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize(("D", "block_q"), [(64, 192), (64, 128), (128, 128)])
def test_rising_logits_cost_no_exactness(
    gpu_generator: torch.Generator, D: int, block_q: int, compensate: bool
) -> None:
    from vidsparse.kernels.hopper import attend_gluon

    S = 2000
    # The last tile is read first: its logits are no reference for those of the others.
    q, k, v = rising_qkv(S, D, gpu_generator)
    mask = random_block_mask(
        1, 2, S, S, block_q=block_q, block_kv=128, density=0.6, generator=gpu_generator
    )
    if gluon_reasons(q, k, v, mask):
        pytest.skip("; ".join(gluon_reasons(q, k, v, mask)))
    config = choose_config(D, mask)
    assert config is not None
    for cubic_share in (0, 8):
        fixed = replace(config, fixed=True, cubic_share=cubic_share)
        got = attend_gluon(q, k, v, mask, scale=D**-0.5, config=fixed, compensate=compensate)
        assert_as_exact_as_eager(got, q, k, v, mask, compensate=compensate)


@pytest.mark.gpu
def test_a_nan_stays_in_its_row(gpu_generator: torch.Generator) -> None:
    from vidsparse.kernels.hopper import attend_gluon

    q, k, v = (
        torch.randn(1, 1, 300, 64, generator=gpu_generator, device="cuda").bfloat16()
        for _ in range(3)
    )
    q[0, 0, 70] = torch.nan
    mask = BlockMask.full(block_q=128, block_kv=128, seq_q=300, seq_kv=300, device="cuda")
    if gluon_reasons(q, k, v, mask):
        pytest.skip("; ".join(gluon_reasons(q, k, v, mask)))
    config = choose_config(64, mask)
    assert config is not None
    got = attend_gluon(q, k, v, mask, scale=0.125, config=replace(config, fixed=True))
    nan = got.out.isnan().any(-1)[0, 0]
    assert nan.nonzero().flatten().tolist() == [70]


def test_masses_are_summed_again_too(generator: torch.Generator) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_retry import attend_again
    from vidsparse.kernels.triton_tile_statistics import dense_stats

    device = generator.device
    # GPUs multiply float32 as TF32; halves have exact products.
    q, k, v = (
        torch.randn(1, 2, 384, 32, generator=generator, device=device).half() for _ in range(3)
    )
    mask = random_block_mask(
        1, 2, 384, 384, block_q=128, block_kv=128, density=0.7, generator=generator
    )
    lse = torch.full((1, 2, 384), torch.nan, device=device)
    other = torch.rand(1, 2, 384, generator=generator, device=device) + 5
    other[0, 0, 3] = -torch.inf
    parts = torch.full((1, 2, 3, 3, 8), torch.nan, device=device)
    attend_again(q, k, v, torch.empty_like(q), lse, mask, 0.2, (other, parts))
    bounds = torch.arange(0, 385, 128)
    other[0, 0, 3] = torch.inf
    want = block_mass_reference(q, k, other, bounds, bounds, scale=0.2)
    want = torch.where(mask.to_dense(), want, 0)
    torch.testing.assert_close(dense_stats(parts, mask, None).double(), want, rtol=1e-4, atol=1e-6)
