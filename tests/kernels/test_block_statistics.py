import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.block_statistics import block_mass, block_means, renew_stale_mass
from vidsparse.kernels.ragged_block_mask import offsets_from_sizes
from vidsparse.kernels.reference import attention_reference, block_mass_reference
from vidsparse.kernels.testing import random_sizes


def test_means_of_equal_blocks_and_the_partial_last(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 70, 8, generator=generator, device=generator.device)
    means = block_means(x, block=32)
    torch.testing.assert_close(means[:, :, 2], x[:, :, 64:].mean(2))
    torch.testing.assert_close(means[:, :, 0], x[:, :, :32].mean(2))


def test_empty_blocks_have_mean_zero(generator: torch.Generator) -> None:
    x = torch.randn(1, 1, 10, 4, generator=generator, device=generator.device)
    offsets = torch.tensor([[[0, 4, 4, 10]]], dtype=torch.int32, device=generator.device)
    means = block_means(x, offsets=offsets)
    assert (means[:, :, 1] == 0).all()
    torch.testing.assert_close(means[:, :, 2], x[:, :, 4:].mean(2))


@pytest.mark.parametrize(("block_q", "block_kv"), [(64, 32), (48, 100), (128, 128)])
def test_mass_matches_the_reference(
    generator: torch.Generator, block_q: int, block_kv: int
) -> None:
    q, k = (
        torch.randn(1, 2, S, 40, generator=generator, device=generator.device) for S in (200, 170)
    )
    lse = attention_reference(q, k, k, None).lse
    assert lse is not None
    edges = [torch.tensor([*range(0, S, b), S]) for S, b in ((200, block_q), (170, block_kv))]
    expected = block_mass_reference(q, k, lse, *edges).float()
    # A GPU multiplies float32 through TF32.
    loose = {"rtol": 1e-2, "atol": 1e-2} if q.is_cuda else {"rtol": 1e-4, "atol": 1e-4}
    got = block_mass(q, k, lse, block_q=block_q, block_kv=block_kv)
    torch.testing.assert_close(got, expected, **loose)
    own = block_mass(q, k, block_q=block_q, block_kv=block_kv)
    torch.testing.assert_close(own, expected, **loose)


def test_mass_of_ragged_blocks_sums_to_the_queries(generator: torch.Generator) -> None:
    q, k = (
        torch.randn(2, 2, S, 16, generator=generator, device=generator.device) for S in (90, 70)
    )
    offsets = [
        offsets_from_sizes(random_sizes(2, 2, n, S, generator=generator))
        for n, S in ((5, 90), (8, 70))
    ]
    mass = block_mass(q, k, q_offsets=offsets[0], kv_offsets=offsets[1])
    torch.testing.assert_close(mass.sum(-1), offsets[0].diff().float(), rtol=1e-4, atol=1e-4)
    empty = offsets[1].diff() == 0
    assert (mass.transpose(2, 3)[empty] == 0).all()


def test_rows_without_keys_weigh_nothing(generator: torch.Generator) -> None:
    q = torch.randn(1, 1, 64, 16, generator=generator, device=generator.device)
    lse = torch.full((1, 1, 64), -torch.inf, device=generator.device)
    assert (block_mass(q, q, lse, block_q=32, block_kv=32) == 0).all()


def test_triton_mass_equals_torch(generator: torch.Generator) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_statistics import block_mass_triton, row_lse_triton

    q, k = (
        torch.randn(1, 2, S, 40, generator=generator, device=generator.device) for S in (150, 130)
    )
    loose = {"rtol": 1e-2, "atol": 1e-2} if q.is_cuda else {"rtol": 1e-4, "atol": 1e-4}
    lse = row_lse_triton(q, k, 0.2)
    exact = attention_reference(q, k, k, None, scale=0.2).lse
    torch.testing.assert_close(lse, exact, **loose)
    edges = [torch.tensor([*range(0, S, b), S]) for S, b in ((150, 64), (130, 48))]
    expected = block_mass_reference(q, k, lse, *edges, scale=0.2).float()
    torch.testing.assert_close(block_mass_triton(q, k, lse, 64, 48, 0.2), expected, **loose)


def test_both_or_neither_block_descriptions_are_refused() -> None:
    x = torch.zeros(1, 1, 8, 4)
    with pytest.raises(ValueError, match="either block or offsets"):
        block_means(x)
    with pytest.raises(ValueError, match="block_q=0 must be at least 1"):
        block_mass(x, x, block_q=0, block_kv=4)


@pytest.mark.parametrize("block_q", [64, 48, 200])
def test_stale_blocks_alone_get_their_exact_lse_and_mass(
    generator: torch.Generator, block_q: int
) -> None:
    blocks = {"block_q": block_q, "block_kv": 32}
    q, k, old, stale = aged_mass(generator, block_q)
    mass = block_mass(q, k, old, **blocks)
    before = old.clone(), mass.clone()
    lse, new = renew_stale_mass(q, k, old, mass, stale, **blocks)
    assert torch.equal(old, before[0])
    assert torch.equal(mass, before[1])
    check_renewed(q, k, old, mass, stale, lse, new, block_q)


def test_triton_renews_stale_blocks_alone(generator: torch.Generator) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_statistics import block_mass_triton, row_lse_triton

    q, k, old, stale = aged_mass(generator, 48)
    scale = q.shape[-1] ** -0.5
    mass = block_mass(q, k, old, block_q=48, block_kv=32)
    lse = row_lse_triton(q, k, scale, only=(stale, 48), out=old.clone())
    new = block_mass_triton(q, k, lse, 48, 32, scale, only=stale, out=mass.clone())
    check_renewed(q, k, old, mass, stale, lse, new, 48)


def aged_mass(
    generator: torch.Generator, block_q: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys, an LSE that is off, and which query blocks to renew."""
    q, k = (
        torch.randn(2, 2, S, 16, generator=generator, device=generator.device) for S in (210, 170)
    )
    lse = attention_reference(q, k, k, None).lse
    assert lse is not None
    Nq = -(-210 // block_q)
    draw = torch.rand(2, 2, Nq, generator=generator, device=generator.device)
    stale = (draw < 0.4).index_fill(2, torch.tensor([Nq - 1], device=draw.device), True)
    return q, k, lse + 0.5, stale


def check_renewed(
    q: torch.Tensor,
    k: torch.Tensor,
    old: torch.Tensor,
    mass: torch.Tensor,
    stale: torch.Tensor,
    lse: torch.Tensor,
    new: torch.Tensor,
    block_q: int,
) -> None:
    loose = {"rtol": 1e-2, "atol": 1e-2} if q.is_cuda else {"rtol": 1e-4, "atol": 1e-4}
    rows = stale.repeat_interleave(block_q, -1)[..., : q.shape[2]]
    exact = attention_reference(q, k, k, None).lse
    assert exact is not None
    torch.testing.assert_close(lse[rows], exact[rows], **loose)
    assert torch.equal(lse[~rows], old[~rows])
    assert torch.equal(new[~stale], mass[~stale])
    fresh = block_mass(q, k, exact, block_q=block_q, block_kv=32)
    torch.testing.assert_close(new[stale], fresh[stale], **loose)
