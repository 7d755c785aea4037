import itertools

import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.pooling import FUSED_UNITS, Variances, permute_and_pool, pooled_means

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
    means, variances = pooled_means(x, cut, order=order, block=block, variances=True)
    assert variances is not None
    moved = x if order is None else x[:, :, order.long()]
    for n, (first, last) in enumerate(itertools.pairwise(offsets)):
        part, count = moved[:, :, first:last], max(1, last - first)
        mean = part.sum(2) / count
        torch.testing.assert_close(means[:, :, n], mean, atol=1e-6, rtol=1e-5)
        variance = (part - mean[:, :, None]).square().sum(2) / count
        torch.testing.assert_close(variances[:, :, n], variance, atol=1e-5, rtol=1e-5)
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
    got = pooled_means_triton(x, cut, order=order, variances=True)
    expected = pooled_means(
        x.cpu(), cut.cpu(), order=None if order is None else order.cpu(), block=block,
        variances=True,
    )  # fmt: skip
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("unit", [1, 8, 12, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_moving_and_averaging_at_once_equals_one_after_the_other(
    generator: torch.Generator, unit: int, dtype: torch.dtype
) -> None:
    x, device = tokens(generator, transposed=True), generator.device
    order = torch.randperm(101, generator=generator, device=device).int()
    moved = x[:, :, order.long()]
    got = permute_and_pool(x, order, unit, variances="channels", dtype=dtype)
    assert torch.equal(got.tokens, moved)
    assert got.means.dtype is dtype
    parts = moved.split(unit, 2)
    # float16 rounds at last: by half a unit of the last place, 2^-11 of it.
    exactness = {"atol": 1e-5, "rtol": 2**-11 if dtype is torch.float16 else 1e-5}
    for mine, expected in (
        (got.means, [part.mean(2) for part in parts]),
        (got.variances, [part.var(2, correction=0) for part in parts]),
    ):
        torch.testing.assert_close(mine.float(), torch.stack(expected, 2), **exactness)
    total = permute_and_pool(x, order, unit, variances="total", dtype=dtype).variances
    expected = torch.stack([part.var(2, correction=0).sum(-1) for part in parts], 2)
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-5)
    assert permute_and_pool(x, order, unit).variances is None


@pytest.mark.parametrize("unit", FUSED_UNITS)
@pytest.mark.parametrize("variances", [None, "channels", "total"])
def test_triton_moves_and_averages_the_same(
    generator: torch.Generator, unit: int, variances: Variances | None
) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels.triton_pooling import permute_and_pool_triton

    x, device = tokens(generator, transposed=True), generator.device
    order = torch.randperm(101, generator=generator, device=device).int()
    got = permute_and_pool_triton(x, order, unit, variances, torch.float32)
    expected = permute_and_pool(x.cpu(), order.cpu(), unit, variances=variances)
    assert torch.equal(got[0].cpu(), expected.tokens)
    torch.testing.assert_close(got[1].cpu(), expected.means, atol=1e-6, rtol=1e-5)
    if variances is None:
        assert got[2] is None
    else:
        torch.testing.assert_close(got[2].cpu(), expected.variances, atol=1e-5, rtol=1e-5)


def test_variances_of_equal_tokens_far_from_zero_vanish(generator: torch.Generator) -> None:
    """A mean of squares less a squared mean would leave what float32 rounds away."""
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels.triton_pooling import permute_and_pool_triton

    device = generator.device
    x = torch.full((1, 1, 70, 24), 300.5, device=device)
    order = torch.randperm(70, generator=generator, device=device).int()
    for variances in ("channels", "total"):
        got = permute_and_pool_triton(x, order, 32, variances, torch.float32)[2]
        # A quotient that is off by two units of the last place.
        assert got.max() < 24 * (300.5 * 2**-22) ** 2
