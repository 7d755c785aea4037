"""Selection of clusters: svg.md T1-T7, but for T6 on density kinds (test_budget.py)."""

import pytest
import torch

from vidsparse.errors import UsageError
from vidsparse.methods.budget import shared_top_k
from vidsparse.methods.clusters import keep_top_p, log_cluster_mass, log_key_weight


def tensor(rows):
    return torch.tensor(rows)[None, None]


def log_mass_of(rows):
    return tensor(rows).log()


def random_case(seed, H=3, Nq=7, Nk=50):
    generator = torch.Generator().manual_seed(seed)
    log_mass = torch.log_softmax(torch.randn(1, H, Nq, Nk, generator=generator) * 3, -1)
    q_sizes, k_sizes = (
        torch.randint(0, 90, (1, H, N), generator=generator, dtype=torch.int32) for N in (Nq, Nk)
    )
    return log_mass, q_sizes, k_sizes


def kept_pairs(mask, q_sizes, k_sizes):
    pairs = mask.long() * q_sizes.long()[..., None] * k_sizes.long()[..., None, :]
    return int(pairs.sum())


def test_mass_is_weighted_by_cluster_size():
    # svg.md T1: logits 1, 0, 0 and sizes 1, 10, 100.
    q, k = tensor([[1.0]]), tensor([[1.0], [0.0], [0.0]])
    mass = log_cluster_mass(q, k, tensor([1, 10, 100]), scale=1.0).exp()
    torch.testing.assert_close(mass, tensor([[0.02412, 0.08872, 0.88717]]), atol=6e-6, rtol=0)


Q_CENTROIDS = tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]])
K_CENTROIDS = tensor(torch.eye(4).mul(2).tolist())
K_SIZES = tensor([1, 2, 4, 0])


def test_mass_of_the_published_case():
    # svg.md T3.
    expected = tensor([[0.551873, 0.149376, 0.298751, 0], [0.050561, 0.747195, 0.202244, 0]])
    mass = log_cluster_mass(Q_CENTROIDS, K_CENTROIDS, K_SIZES).exp()
    torch.testing.assert_close(mass, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("p", "min_ratio", "kept"),
    [
        (0.5, 0, [[1, 0, 0, 0], [0, 1, 0, 0]]),
        (0.6, 0, [[1, 0, 1, 0], [0, 1, 0, 0]]),
        (0.9, 0, [[1, 1, 1, 0], [0, 1, 1, 0]]),
        (1, 0, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (1e-6, 0.75, [[1, 1, 1, 0], [1, 1, 1, 0]]),
    ],
)
def test_top_p_of_the_published_case(p, min_ratio, kept):
    # svg.md T3.
    log_mass = log_cluster_mass(Q_CENTROIDS, K_CENTROIDS, K_SIZES)
    mask = keep_top_p(log_mass, p, min_ratio=min_ratio)
    assert mask.equal(tensor(kept).bool())


def test_pairs_of_the_published_case():
    # svg.md T3: 3 * 1 + 4 * 2 of 7 * 7 pairs.
    mask = keep_top_p(log_cluster_mass(Q_CENTROIDS, K_CENTROIDS, K_SIZES), 0.5)
    assert kept_pairs(mask, tensor([3, 4]), K_SIZES) == 11


@pytest.mark.parametrize(
    ("p", "count"), [(1e-9, 1), (0.5, 2), (0.74, 2), (0.75, 3), (0.875, 4), (1, 4)]
)
def test_the_cluster_that_crosses_p_is_kept_and_equality_keeps_one_more(p, count):
    # svg.md T2 with masses that binary fractions hold exactly.
    assert int(keep_top_p(log_mass_of([[0.5, 0.25, 0.125, 0.125]]), p).sum()) == count


def test_minimum_ratio_keeps_that_share():
    assert int(keep_top_p(log_mass_of([[0.5, 0.3, 0.15, 0.05]]), 0.01, min_ratio=0.5).sum()) == 2


@pytest.mark.parametrize("p", [0, -0.1, 1.01])
def test_p_out_of_range_says_so(p):
    with pytest.raises(UsageError, match=r"must lie in \(0, 1\]"):
        keep_top_p(log_mass_of([[0.5, 0.5]]), p)


def test_minimum_ratio_out_of_range_says_so():
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        keep_top_p(log_mass_of([[0.5, 0.5]]), 0.5, min_ratio=1.5)


@pytest.mark.parametrize("p", [1e-6, 0.5, 0.999])
def test_every_row_keeps_a_cluster_with_tokens(p):
    # svg.md T4, with logits that make empty clusters look best.
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 2, n, 8, generator=generator) * 9 for n in (30, 40))
    sizes = torch.randint(0, 2, (1, 2, 40), generator=generator)
    mask = keep_top_p(log_cluster_mass(q, k, sizes), p)
    assert (mask & (sizes > 0)[..., None, :]).any(-1).all()
    assert not (mask & (sizes == 0)[..., None, :]).any()


def test_empty_clusters_rank_behind_clusters_whose_mass_underflows():
    q, k = tensor([[1.0]]), tensor([[0.0], [-1e4], [50.0]])
    mask = keep_top_p(log_cluster_mass(q, k, tensor([4, 4, 0]), scale=1.0), 0.01, min_ratio=0.67)
    assert mask.flatten().tolist() == [True, True, False]


def test_small_masses_are_summed_exactly():
    # svg.md T5: 1000 nearly equal clusters; a bfloat16 sum stalls and keeps all.
    generator = torch.Generator().manual_seed(0)
    mass = torch.softmax(torch.randn(1, 1, 20, 1000, generator=generator).double() * 0.3, -1)
    ahead = mass.sort(descending=True).values.cumsum(-1) - mass.sort(descending=True).values
    counts = keep_top_p(mass.float().log(), 0.9).sum(-1)
    assert (counts - (ahead <= 0.9).sum(-1)).abs().max() <= 1


def test_top_p_grows_with_p_and_with_the_ratio():
    ranks = random_case(1)[0]
    masks = [keep_top_p(ranks, p) for p in (0.1, 0.5, 0.9, 1)]
    masks += [keep_top_p(ranks, 0.5, min_ratio=ratio) for ratio in (0.3, 1)]
    for small, large in ((0, 1), (1, 2), (2, 3), (1, 4), (4, 5)):
        assert not (masks[small] & ~masks[large]).any()
    assert masks[-1].all()


def test_mass_ignores_a_common_shift_of_the_scores():
    # svg.md T7: a direction that all keys share adds the same to every score of a row.
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 1, n, 8, generator=generator) for n in (4, 9))
    sizes = torch.arange(9)[None, None]
    shifted = log_cluster_mass(q, k + torch.ones(8), sizes).exp()
    torch.testing.assert_close(shifted, log_cluster_mass(q, k, sizes).exp(), atol=1e-5, rtol=1e-4)


def test_two_halves_of_a_cluster_hold_its_mass():
    # svg.md T7.
    q, k = tensor([[0.3, -1.0]]), tensor([[1.0, 2.0], [0.5, -1.0]])
    whole = log_cluster_mass(q, k, tensor([10, 6])).exp()
    halves = log_cluster_mass(q, k[:, :, [0, 1, 1]], tensor([10, 3, 3])).exp()
    torch.testing.assert_close(halves[..., 1] + halves[..., 2], whole[..., 1])


def test_key_weight_is_the_mass_of_one_key():
    q, k = tensor([[0.3, -1.0]]), tensor([[1.0, 2.0], [0.5, -1.0], [9.0, 9.0]])
    sizes = tensor([10, 6, 0])
    weight = log_key_weight(log_cluster_mass(q, k, sizes), sizes).exp()
    keys = k[:, :, [0] * 10 + [1] * 6]
    exact = torch.softmax(q @ keys.mT / 2**0.5, -1)
    torch.testing.assert_close(
        weight, torch.stack((exact[..., 0], exact[..., 10], 0 * exact[..., 0]), -1)
    )


def test_more_mass_than_whole_clusters_by_mass():
    # The point of ranking by the weight of a key: more mass for the same pairs.
    log_mass, q_sizes, k_sizes = random_case(9)
    k_sizes = k_sizes.clamp(min=1)
    log_mass = torch.log_softmax(log_mass + k_sizes[..., None, :].log(), -1)
    by_key = shared_top_k(log_key_weight(log_mass, k_sizes), 0.2, q_sizes, k_sizes)
    by_mass = shared_top_k(log_mass, 0.2, q_sizes, k_sizes)
    mass = log_mass.exp() * q_sizes[..., None]
    assert (mass * by_key).sum() > (mass * by_mass).sum()
