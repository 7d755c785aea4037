import itertools

import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.pooling import FUSED_UNITS, permute_and_pool, pooled_means

CUTS = [([0, 50, 100, 101], 50), ([0, 1, 33, 33, 101], None), ([0, 101], 101)]


def tokens(generator: torch.Generator, transposed: bool) -> torch.Tensor:
    device = generator.device
    if transposed:
        return torch.randn(2, 101, 3, 24, generator=generator, device=device).transpose(1, 2)
    return torch.randn(2, 3, 101, 24, generator=generator, device=device)


@pytest.mark.parametrize(("offsets", "block"), CUTS)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_of_an_order_are_averaged(
    generator: torch.Generator,
    offsets: list[int],
    block: int | None,
    ordered: bool,
    transposed: bool,
) -> None:
    x, device = tokens(generator, transposed), generator.device
    order = torch.randperm(101, generator=generator, device=device).int() if ordered else None
    cut = torch.tensor(offsets, dtype=torch.int32, device=device)
    means, squares = pooled_means(x, cut, order=order, block=block, squares=True)
    moved = x if order is None else x[:, :, order.long()]
    for got, values in ((means, moved), (squares, moved.square())):
        for n, (first, last) in enumerate(itertools.pairwise(offsets)):
            expected = values[:, :, first:last].sum(2) / max(1, last - first)
            torch.testing.assert_close(got[:, :, n], expected, atol=1e-6, rtol=1e-5)
    assert pooled_means(x, cut, order=order, block=block)[1] is None


@pytest.mark.parametrize(("offsets", "block"), CUTS)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_averages_the_same(
    generator: torch.Generator,
    offsets: list[int],
    block: int | None,
    ordered: bool,
    dtype: torch.dtype,
) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels.triton_pooling import pooled_means_triton

    x, device = tokens(generator, transposed=True).to(dtype), generator.device
    order = torch.randperm(101, generator=generator, device=device).int() if ordered else None
    cut = torch.tensor(offsets, dtype=torch.int32, device=device)
    got = pooled_means_triton(x, cut, order=order, squares=True)
    expected = pooled_means(
        x.cpu(), cut.cpu(), order=None if order is None else order.cpu(), block=block, squares=True
    )
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("unit", [1, 8, 12, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_moving_and_averaging_at_once_equals_one_after_the_other(
    generator: torch.Generator, unit: int, dtype: torch.dtype
) -> None:
    x, device = tokens(generator, transposed=True), generator.device
    order = torch.randperm(101, generator=generator, device=device).int()
    moved = x[:, :, order.long()]
    got = permute_and_pool(x, order, unit, squares=True, dtype=dtype)
    assert torch.equal(got.tokens, moved)
    assert got.means.dtype is dtype
    assert got.squares is not None
    for mine, values in ((got.means.float(), moved), (got.squares, moved.square())):
        expected = torch.stack([part.mean(2) for part in values.split(unit, 2)], 2)
        # Means are rounded to float16 at last: by half a unit of its last place, 2^-11 of them.
        rounded = mine is not got.squares and dtype is torch.float16
        exactness = 2**-11 if rounded else 1e-5
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=exactness)
    assert permute_and_pool(x, order, unit).squares is None


@pytest.mark.parametrize("unit", FUSED_UNITS)
@pytest.mark.parametrize("squares", [False, True])
def test_triton_moves_and_averages_the_same(
    generator: torch.Generator, unit: int, squares: bool
) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels.triton_pooling import permute_and_pool_triton

    x, device = tokens(generator, transposed=True), generator.device
    order = torch.randperm(101, generator=generator, device=device).int()
    got = permute_and_pool_triton(x, order, unit, squares, torch.float32)
    expected = permute_and_pool(x.cpu(), order.cpu(), unit, squares=squares)
    assert torch.equal(got[0].cpu(), expected.tokens)
    torch.testing.assert_close(got[1].cpu(), expected.means, atol=1e-6, rtol=1e-5)
    if squares:
        torch.testing.assert_close(got[2].cpu(), expected.squares, atol=1e-6, rtol=1e-5)
    else:
        assert got[2] is None
