import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.pooled_mass import group_means, pooled_mass

SHAPES = [
    (1, 2, 64, 40, 32, 8),
    (2, 1, 131, 70, 40, 16),
    (1, 1, 3, 1, 16, 1),
    (1, 2, 70, 130, 64, 64),
]


def case(shape, generator, dtype=torch.float32):
    B, H, M, N, D, group = shape
    device = generator.device
    q, k = (2 * torch.randn(B, H, n, D, generator=generator, device=device) for n in (M, N))
    sizes = torch.randint(1, 200, (N,), generator=generator, device=device)
    return q.to(dtype), k.to(dtype), sizes.float().log(), group


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mass_is_the_mean_attention_of_the_pools(generator, shape):
    q, k, log_sizes, group = case(shape, generator)
    weights = torch.softmax(q.double() @ k.double().mT * shape[4] ** -0.5 + log_sizes.double(), -1)
    expected = torch.stack([part.mean(2) for part in weights.split(group, 2)], 2)
    mass = pooled_mass(q, k, log_sizes, group=group)
    tolerance = {"atol": 2e-3, "rtol": 2e-2} if q.is_cuda else {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(mass.double(), expected, **tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_gives_the_same(generator, shape, dtype):
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels.triton_pooled_mass import pooled_mass_triton

    q, k, log_sizes, group = case(shape, generator, dtype)
    got = pooled_mass_triton(q, k, log_sizes, group=group)
    expected = pooled_mass(q.cpu(), k.cpu(), log_sizes.cpu(), group=group)
    torch.testing.assert_close(got.cpu(), expected, atol=2e-3, rtol=2e-2)
    torch.testing.assert_close(got.sum(-1), torch.ones_like(got[..., 0]), atol=1e-4, rtol=0)


def test_a_smaller_last_group_is_averaged_over_its_own_rows():
    x = torch.arange(10.0).view(1, 5, 2)
    assert group_means(x, 2).tolist() == [[[1, 2], [5, 6], [8, 9]]]


def test_groups_that_no_kernel_takes_are_refused():
    x = torch.zeros(1, 1, 6, 16)
    with pytest.raises(ValueError, match="group=3"):
        pooled_mass(x, x, torch.zeros(6), group=3)
    with pytest.raises(ValueError, match="have shapes"):
        pooled_mass(x, x, torch.zeros(5), group=2)
