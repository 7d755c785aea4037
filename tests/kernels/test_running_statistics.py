"""Statistics against the keys so far: a slow twin, the torch path, and the kernels."""

import math

import pytest
import torch
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.block_sparse_attention import (
    Impl,
    block_sparse_attention,
    unsupported_reasons,
)
from vidsparse.kernels.block_statistics import block_mass
from vidsparse.kernels.reference import attention_reference
from vidsparse.kernels.running_statistics import RunningStat, empty_value, running_statistic
from vidsparse.kernels.testing import assert_as_exact_as_eager, random_block_mask

STATS = list(RunningStat)
IMPLS = [
    ("cpu", Impl.TRITON, torch.float32),
    ("cpu", Impl.TORCH, torch.float32),
    pytest.param("cuda", Impl.TRITON, torch.bfloat16, marks=pytest.mark.gpu),
    pytest.param("cuda", Impl.GLUON, torch.bfloat16, marks=pytest.mark.gpu),
]


def tokens(S_q: int, S_kv: int, D: int, dtype: torch.dtype, generator: torch.Generator):
    device = generator.device
    q, k, v = (
        torch.randn(2, 2, S, D, generator=generator, device=device) for S in (S_q, S_kv, S_kv)
    )
    return (2 * q).to(dtype), k.to(dtype), v.to(dtype)


def slow_statistic(
    q: Tensor, k: Tensor, mask: BlockMask, stat: RunningStat, *, backwards: bool = False
) -> Tensor:
    """Visit tile by tile in float64, as the kernels' docstrings say."""
    B, H, _, D = q.shape
    shape = (B, H, mask.num_q_blocks, mask.num_kv_blocks)
    out = torch.full(shape, empty_value(stat), dtype=torch.float64)
    logits = (q.double() @ k.double().mT).cpu() * D**-0.5 / math.log(2)
    lists, counts = mask.kv_indices.cpu(), mask.kv_num_blocks.cpu()
    for b, h, i in ((b, h, i) for b in range(B) for h in range(H) for i in range(shape[2])):
        rows = logits[b, h, i * mask.block_q : (i + 1) * mask.block_q]
        visited = lists[b, h, i, : counts[b, h, i]].tolist()
        visited = visited[::-1] if backwards else visited
        tiles = [rows[:, j * mask.block_kv : (j + 1) * mask.block_kv] for j in visited]
        for n, j in enumerate(visited):
            seen = torch.cat(tiles if n == 0 else tiles[: n + 1], -1)
            if stat is RunningStat.MAX:
                out[b, h, i, j] = (tiles[n].amax(-1) - seen.amax(-1)).max()
            else:
                out[b, h, i, j] = (tiles[n].exp2().sum(-1) / seen.exp2().sum(-1)).sum()
    return out


@pytest.mark.parametrize("stat", STATS)
@pytest.mark.parametrize("blocks", [(64, 32), (48, 100), (128, 128)])
def test_torch_equals_the_slow_twin(stat, blocks):
    generator = torch.Generator().manual_seed(0)
    q, k, _ = tokens(150, 170, 16, torch.float32, generator)
    mask = random_block_mask(2, 2, 150, 170, block_q=blocks[0], block_kv=blocks[1], density=0.6,
                             generator=generator)  # fmt: skip
    got = running_statistic(q, k, mask, stat)
    torch.testing.assert_close(got.double(), slow_statistic(q, k, mask, stat), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stat", STATS)
def test_torch_takes_large_inputs_in_parts(stat, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    q, k, _ = tokens(150, 170, 16, torch.float32, generator)
    mask = random_block_mask(2, 2, 150, 170, block_q=32, block_kv=32, density=0.6,
                             generator=generator)  # fmt: skip
    whole = running_statistic(q, k, mask, stat)
    monkeypatch.setattr("vidsparse.kernels.running_statistics._LOGITS", 2 * 32 * 170)
    torch.testing.assert_close(running_statistic(q, k, mask, stat), whole)


@pytest.mark.parametrize("stat", STATS)
@pytest.mark.parametrize(("device", "impl", "dtype"), IMPLS)
# The interpreter's tile has 32 keys in float32: one tile per block, and four.
@pytest.mark.parametrize("blocks", [(64, 32, 64), (128, 128, 64), (128, 128, 128)])
def test_kernels_equal_the_slow_twin(device, impl, dtype, stat, blocks):
    block_q, block_kv, D = blocks
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = tokens(300, 333, D, dtype, generator)
    mask = random_block_mask(2, 2, 300, 333, block_q=block_q, block_kv=block_kv, density=0.6,
                             generator=generator)  # fmt: skip
    reasons = unsupported_reasons(impl, q, k, v, mask)
    if reasons:
        pytest.skip("; ".join(reasons))
    output = block_sparse_attention(q, k, v, mask, impl=impl, running=stat)
    assert_as_exact_as_eager(output, q, k, v, mask)
    got = output.block_stats
    # Gluon goes from the end, where its tiles are the mask's blocks; else torch goes forwards.
    backwards = impl is Impl.GLUON and block_kv == 128
    expected = slow_statistic(q, k, mask, stat, backwards=backwards)
    kept = mask.to_dense()
    assert bool((got[~kept] == empty_value(stat)).all())
    if stat is RunningStat.MASS and impl is Impl.TRITON and block_kv > 32:
        # Tiles of one block are compared one after the other, which only makes shares larger.
        exact = block_mass(q, k, output.lse, block_q=block_q, block_kv=block_kv)
        assert bool((got[kept] >= exact[kept] - 1e-2).all())
        assert bool((got.cpu() >= expected - 1e-2).all())
        assert bool((got.cpu() <= 4 * expected + 1e-2).all())
        return
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-2, atol=2e-2)


def test_running_mass_is_never_below_the_true_share_and_at_most_twice_it_from_both_sides():
    generator = torch.Generator().manual_seed(2)
    q, k, _ = tokens(128, 256, 16, torch.float32, generator)
    sides = {"block_q": 32, "block_kv": 32}
    every = torch.ones(1, 1, 4, 8, dtype=torch.bool)
    mask = BlockMask.from_dense(every, **sides, seq_q=128, seq_kv=256)
    back = BlockMask(mask.kv_num_blocks, mask.kv_indices.flip(-1).contiguous(), 32, 32, 128, 256)
    there, again = (running_statistic(q, k, m, RunningStat.MASS) for m in (mask, back))
    lse = attention_reference(q, k, k, None).lse
    exact = block_mass(q, k, lse, **sides)
    assert bool((there >= exact * (1 - 1e-5)).all())
    assert bool((again >= exact * (1 - 1e-5)).all())
    # Per row the smaller of the two shares is at most twice the true one; one row per block here.
    one = torch.arange(0, 128, 32)
    single = {"block_q": 1, "block_kv": 32, "seq_q": 4, "seq_kv": 256}
    rows = q[:, :, one]
    mask = BlockMask.from_dense(every, **single)
    back = BlockMask(mask.kv_num_blocks, mask.kv_indices.flip(-1).contiguous(), *single.values())
    there, again = (running_statistic(rows, k, m, RunningStat.MASS) for m in (mask, back))
    exact = block_mass(rows, k, lse[:, :, one], block_q=1, block_kv=32)
    assert bool((torch.minimum(there, again) <= 2 * exact * (1 + 1e-4)).all())


@pytest.mark.parametrize("stat", STATS)
def test_rows_outside_count_for_nothing(stat):
    # The last query block holds one row, which alone decides.
    generator = torch.Generator().manual_seed(3)
    q, k, _ = tokens(65, 128, 16, torch.float32, generator)
    mask = BlockMask.full(block_q=64, block_kv=32, seq_q=65, seq_kv=128)
    alone = BlockMask.full(block_q=1, block_kv=32, seq_q=1, seq_kv=128)
    got = running_statistic(q, k, mask, stat)[:, :, 1:]
    torch.testing.assert_close(got, running_statistic(q[:, :, 64:], k, alone, stat))


def test_two_statistics_and_blocks_of_any_size_are_refused():
    q = torch.randn(1, 1, 64, 16)
    mask = BlockMask.full(block_q=32, block_kv=32, seq_q=64, seq_kv=64)
    with pytest.raises(ValueError, match="ask for one statistic"):
        block_sparse_attention(q, q, q, mask, stats_lse=q[..., 0], running=RunningStat.MAX)
    sizes = torch.full((1, 1, 2), 32, dtype=torch.int32)
    kept = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    ragged = RaggedBlockMask.from_sizes(kept, sizes, sizes, seq_q=64, seq_kv=64)
    with pytest.raises(ValueError, match="needs blocks of one size; give a BlockMask"):
        block_sparse_attention(q, q, q, ragged, running=RunningStat.MASS)
