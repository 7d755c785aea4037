import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.pooled_scores import group_means, pooled_scores

SHAPES = [
    (1, 2, 64, 40, 32, 8),
    (2, 1, 131, 70, 40, 16),
    (1, 1, 3, 1, 16, 1),
    (1, 2, 70, 130, 64, 64),
]


def case(shape, generator, dtype=torch.float32):
    B, H, M, N, D, group = shape
    device = generator.device
    q, k, variances = (
        2 * torch.randn(B, H, n, D, generator=generator, device=device) for n in (M, N, N)
    )
    centre = torch.randn(B, H, D, generator=generator, device=device)
    sizes = torch.randint(1, 200, (N,), generator=generator, device=device)
    tensors = [x.to(dtype) for x in (q, k, variances.square(), centre)]
    return [*tensors, sizes.float().log(), group]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_are_means_over_the_pools(generator, shape):
    q, k, variances, centre, log_sizes, group = case(shape, generator)
    got = pooled_scores(q, k, log_sizes, group=group, variances=variances, centre=centre)
    q, k, variances, centre = (x.double() for x in (q, k, variances, centre))
    weights = torch.softmax(q @ k.mT * shape[4] ** -0.5 + log_sizes.double(), -1)
    spread = weights * ((q - centre[:, :, None]).square() @ variances.mT) / shape[4]
    tolerance = {"atol": 2e-3, "rtol": 2e-2} if q.is_cuda else {"atol": 1e-6, "rtol": 1e-4}
    for mine, each in ((got.mass, weights), (got.spread, spread)):
        expected = torch.stack([part.mean(2) for part in each.split(group, 2)], 2)
        torch.testing.assert_close(mine.double(), expected, **tolerance)


def test_chosen_queries_and_weights_of_blocks(generator):
    q, k, variances, centre, log_sizes, group = case(SHAPES[1], generator)
    rows = torch.randperm(131, generator=generator, device=q.device)[:77].int()
    weights = torch.rand(2, 1, 70, generator=generator, device=q.device)
    options = {"group": group, "variances": variances, "centre": centre}
    plain = pooled_scores(q[:, :, rows.long()], k, log_sizes, **options)
    got = pooled_scores(q, k, log_sizes, rows=rows, weights=weights, **options)
    torch.testing.assert_close(got.mass, plain.mass)
    torch.testing.assert_close(got.spread, plain.spread * weights[:, :, None])


@pytest.mark.parametrize("transposed", [False, True])
def test_triton_chooses_and_weighs_the_same(generator, transposed):
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels.triton_pooled_scores import pooled_scores_triton

    q, k, variances, centre, log_sizes, group = case((2, 3, 131, 70, 40, 16), generator)
    rows = torch.randperm(131, generator=generator, device=q.device)[:77].int()
    weights = torch.rand(2, 3, 70, generator=generator, device=q.device)
    if transposed:
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    got = pooled_scores_triton(q, rows, k, log_sizes, variances, weights, centre, group=group)
    on_cpu = [x.cpu() for x in (q, k, log_sizes, rows, variances, weights, centre)]
    names = ("rows", "variances", "weights", "centre")
    options = dict(zip(names, on_cpu[3:], strict=True))
    expected = pooled_scores(*on_cpu[:3], group=group, **options)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, atol=2e-3, rtol=2e-2)


def test_heads_in_parts_give_the_same(generator, monkeypatch):
    q, k, variances, centre, log_sizes, group = case(SHAPES[1], generator)
    together = pooled_scores(q, k, log_sizes, group=group, variances=variances, centre=centre)
    monkeypatch.setattr("vidsparse.kernels.pooled_scores._ENTRIES", 1)
    apart = pooled_scores(q, k, log_sizes, group=group, variances=variances, centre=centre)
    torch.testing.assert_close(apart, together)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_gives_the_same(generator, shape, dtype):
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels.triton_pooled_scores import pooled_scores_triton

    q, k, variances, centre, log_sizes, group = case(shape, generator, dtype)
    one = torch.ones((), device=q.device).expand(k.shape[:3])
    got = pooled_scores_triton(q, None, k, log_sizes, variances, one, centre, group=group)
    q, k, variances, centre, log_sizes = (x.cpu() for x in (q, k, variances, centre, log_sizes))
    expected = pooled_scores(
        q.float(), k.float(), log_sizes, group=group, variances=variances, centre=centre
    )
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.cpu().float(), theirs, atol=2e-3, rtol=2e-2)
    total = got[0].float().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=2e-3, rtol=0)
    assert pooled_scores(q, k, log_sizes, group=group).spread is None


def test_a_smaller_last_group_is_averaged_over_its_own_rows():
    x = torch.arange(10.0).view(1, 5, 2)
    assert group_means(x, 2).tolist() == [[[1, 2], [5, 6], [8, 9]]]


def test_groups_that_no_kernel_takes_are_refused():
    x = torch.zeros(1, 1, 6, 16)
    with pytest.raises(ValueError, match="group=3"):
        pooled_scores(x, x, torch.zeros(6), group=3)
    for wrong in ({"log_sizes": torch.zeros(5)}, {"variances": torch.zeros(1, 1, 5, 16)}):
        with pytest.raises(ValueError, match="have shapes"):
            pooled_scores(x, x, group=2, **{"log_sizes": torch.zeros(6), **wrong})
