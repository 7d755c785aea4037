import itertools

import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.pooling import pooled_means

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
