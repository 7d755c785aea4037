import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.permute import (
    permute_qkv,
    permute_tokens,
    restore_tokens,
    sort_by_label,
)


def random_order(B: int, H: int, S: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(B, H, S, generator=generator, device=generator.device).argsort(-1)


@pytest.mark.parametrize("lead", [(2, 3), (1, 3), (2, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_restore_undoes_permute(
    generator: torch.Generator, lead: tuple[int, int], dtype: torch.dtype
) -> None:
    x = torch.randn(2, 3, 100, 40, generator=generator, device=generator.device)
    order = random_order(*lead, 100, generator).to(dtype)
    permuted = permute_tokens(x, order)
    assert torch.equal(permuted[1, 2], x[1, 2, order.expand(2, 3, 100)[1, 2]])
    assert torch.equal(restore_tokens(permuted, order), x)


def test_identity_is_not_copied(generator: torch.Generator) -> None:
    x = torch.randn(1, 1, 10, 8, generator=generator, device=generator.device)
    assert permute_tokens(x, None) is x
    assert restore_tokens(x, None) is x


def test_qkv_in_one_launch_equals_one_by_one(generator: torch.Generator) -> None:
    q, k, v = (
        torch.randn(2, 3, S, 64, generator=generator, device=generator.device)
        for S in (130, 70, 70)
    )
    q_order, kv_order = random_order(2, 3, 130, generator), random_order(1, 3, 70, generator)
    for orders in ((q_order, kv_order), (None, kv_order), (q_order, None), (None, None)):
        got = permute_qkv(q, k, v, *orders)
        each = ((q, orders[0]), (k, orders[1]), (v, orders[1]))
        expected = [permute_tokens(x, order) for x, order in each]
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(("S", "K"), [(1, 1), (100, 7), (2500, 40)])
def test_sorting_by_label_is_stable(generator: torch.Generator, S: int, K: int) -> None:
    labels = torch.randint(0, K, (2, 3, S), generator=generator, device=generator.device)
    order, offsets = sort_by_label(labels, K + 2)
    assert torch.equal(order.long(), labels.argsort(dim=-1, stable=True))
    counts = torch.nn.functional.one_hot(labels, K + 2).sum(2)
    assert torch.equal(offsets.diff().long(), counts)
    assert (offsets[..., 0] == 0).all()


def test_triton_sort_equals_torch_sort(generator: torch.Generator) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_sort import sort_by_label_triton

    labels = torch.randint(0, 37, (1, 2, 1300), generator=generator, device=generator.device)
    order, offsets = sort_by_label_triton(labels, 40)
    assert torch.equal(order.long(), labels.argsort(dim=-1, stable=True))
    assert offsets[0, 0, -1] == 1300


def test_triton_permutation_equals_indexing(generator: torch.Generator) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_permute import gather_rows, scatter_rows

    x = torch.randn(2, 70, 3, 40, generator=generator, device=generator.device).transpose(1, 2)
    order = random_order(1, 3, 70, generator)
    (permuted,) = gather_rows([x], [order])
    index = order.expand(2, 3, 70)[..., None].expand(x.shape)
    assert torch.equal(permuted, x.gather(2, index))
    assert torch.equal(scatter_rows(permuted, order), x)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (torch.zeros(1, 1, 9, dtype=torch.int64), "order has shape"),
        (torch.zeros(1, 2, 10, dtype=torch.int64), "order has shape"),
        (torch.zeros(1, 1, 10), "order is torch.float32"),
    ],
)
def test_bad_orders_are_refused(order: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        permute_tokens(torch.zeros(1, 1, 10, 4), order)
