import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.errors import UsageError
from vidsparse.methods.budget import (
    BUDGET_KINDS,
    Budget,
    check_density,
    flat_top_k,
    row_top_k,
    shared_top_k,
    top_p,
)


def ones(count):
    return torch.ones(count, dtype=torch.int64)


def scores_of(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def share(mask, q_sizes, kv_sizes):
    pairs = (mask * q_sizes[:, None] * kv_sizes).sum((-1, -2))
    return pairs / (q_sizes.sum() * kv_sizes.sum())


@st.composite
def maps(draw):
    Nq, Nkv = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    unequal = draw(st.booleans())
    q_sizes = torch.randint(1, 9, (Nq,), generator=generator) if unequal else 7 * ones(Nq)
    kv_sizes = torch.randint(1, 9, (Nkv,), generator=generator) if unequal else 7 * ones(Nkv)
    # Rounded scores make ties common, constant ones everywhere.
    scores = torch.rand(2, 3, Nq, Nkv, generator=generator).mul(draw(st.integers(0, 5))).round()
    forced = torch.rand(Nq, Nkv, generator=generator) < draw(st.sampled_from([0, 0.2]))
    return scores, q_sizes, kv_sizes, forced, draw(st.floats(0.01, 1))


def floor_share(forced, scores, q_sizes, kv_sizes):
    """Share of pairs of forced blocks plus the largest block in rows without any."""
    keys = torch.where(forced.any(-1), (forced * kv_sizes).sum(-1), kv_sizes.max())
    return float((keys * q_sizes).sum() / (q_sizes.sum() * kv_sizes.sum()))


def test_flat_keeps_the_published_count():
    # draft D4 and D6: the paper's ceil(r g^2), not the repository's one more.
    assert int(flat_top_k(scores_of(0, 1, 1, 4, 4), 0.25, ones(4), ones(4)).sum()) == 4
    kept = flat_top_k(scores_of(0, 1, 1, 990, 990), 1 - 0.9, ones(990), ones(990))
    assert int(kept.sum()) == 98_010


@pytest.mark.parametrize("kind", ["flat", "shared"])
def test_a_request_that_whole_blocks_meet_exactly_gets_no_block_more(kind):
    kept = Budget(kind, 0.3).select(torch.zeros(1, 2, 3, 10), None, 7 * ones(3), 7 * ones(10))
    assert int(kept.sum()) == 2 * 9


def test_flat_never_starves_a_row():
    # draft D5: the strict rule leaves rows 2 and 3 empty.
    scores = torch.tensor([[0.5, 0.5, 0, 0]] * 2 + [[0.25] * 4] * 2)[None, None]
    assert flat_top_k(scores, 4 / 16, ones(4), ones(4)).sum(-1).tolist() == [[[1, 1, 1, 1]]]
    assert row_top_k(scores, 4 / 16, ones(4), ones(4)).sum(-1).tolist() == [[[1, 1, 1, 1]]]


@settings(max_examples=150, deadline=None)
@given(maps())
def test_flat_meets_the_request_to_the_block(case):
    scores, q_sizes, kv_sizes, forced, density = case
    kept = flat_top_k(scores, density, q_sizes, kv_sizes, forced=forced)
    largest = float(q_sizes.max() * kv_sizes.max() / (q_sizes.sum() * kv_sizes.sum()))
    least = floor_share(forced, scores, q_sizes, kv_sizes)
    assert bool((kept | ~forced).all())
    assert bool(kept.any(-1).all())
    assert bool((share(kept, q_sizes, kv_sizes) >= density - 1e-6).all())
    assert bool((share(kept, q_sizes, kv_sizes) < max(density, least) + largest + 1e-6).all())


@settings(max_examples=60, deadline=None)
@given(maps())
def test_flat_equals_a_slow_greedy_choice(case):
    scores, q_sizes, kv_sizes, forced, density = case
    kept = flat_top_k(scores, density, q_sizes, kv_sizes, forced=forced)
    Nkv = len(kv_sizes)
    target = density * float(q_sizes.sum() * kv_sizes.sum()) * (1 - 1e-9)
    for b, h in ((0, 0), (1, 2)):
        grid = scores[b, h].tolist()
        must = forced.clone()
        for i, row in enumerate(grid):
            must[i, row.index(max(row))] |= not bool(forced[i].any())
        cells = [divmod(n, Nkv) for n in range(must.numel())]
        cells.sort(key=lambda cell: -torch.inf if must[cell] else -grid[cell[0]][cell[1]])
        slow, held = must.clone(), 0
        for i, j in cells:
            if held < target:
                slow[i, j] = True
                held += int(q_sizes[i] * kv_sizes[j])
        assert torch.equal(kept[b, h], slow)


@settings(max_examples=100, deadline=None)
@given(maps())
def test_shared_is_flat_over_the_heads_laid_end_to_end(case):
    scores, q_sizes, kv_sizes, forced, density = case
    kept = shared_top_k(scores, density, q_sizes, kv_sizes, forced=forced)
    B, H, Nq, Nkv = scores.shape
    end_to_end = scores.view(B, 1, H * Nq, Nkv)
    expected = flat_top_k(
        end_to_end, density, q_sizes.repeat(H), kv_sizes, forced=forced.repeat(H, 1)
    )
    assert torch.equal(kept, expected.view(scores.shape))


@pytest.mark.parametrize("kind", BUDGET_KINDS)
def test_the_floor_changes_nothing_where_every_row_has_a_forced_block(kind):
    scores, forced = torch.softmax(scores_of(6, 2, 3, 9, 9), -1), torch.eye(9, dtype=torch.bool)
    budget, sizes = Budget(kind, 0.4, p=0.5, threshold=0.2), (3 * ones(9), 4 * ones(9))
    kept = budget.select(scores, forced, *sizes)
    assert torch.equal(budget.select(scores, forced, *sizes, floor=False), kept)
    assert bool(kept[..., forced].all())
    assert not bool(kept.all())


@pytest.mark.parametrize("kind", ["flat", "shared"])
@pytest.mark.parametrize("shape", [(1, 1, 2, 5), (1, 2, 1, 5), (2, 1, 2, 5), (2, 5), (1, 2, 2, 5)])
def test_forced_blocks_of_any_shape_that_broadcasts(kind, shape):
    # As many heads as query blocks and batch rows: numbers of entries alone do not tell them apart.
    scores, sizes = scores_of(7, 2, 2, 2, 5), (3 * ones(2), 3 * ones(5))
    forced = scores_of(8, *shape) < 0.3
    budget = Budget(kind, 0.4)
    got = budget.select(scores, forced, *sizes, floor=False)
    expected = budget.select(scores, forced.expand(scores.shape).clone(), *sizes, floor=False)
    assert torch.equal(got, expected)
    assert bool(got[forced.expand(got.shape)].all())


def test_shared_gives_more_to_heads_that_look_everywhere():
    mass = torch.softmax(scores_of(4, 1, 2, 30, 40) * torch.tensor([0.1, 20.0])[:, None, None], -1)
    kept = shared_top_k(mass.log(), 0.3, 5 * ones(30), 5 * ones(40))
    assert int(kept.sum()) == 720
    share = kept.float().mean((0, 2, 3))
    assert share[0] > share[1] + 0.2


@pytest.mark.parametrize(
    ("count", "kept"), [(2, "0001 0001"), (3, "0001 0101"), (4, "0001 0111"), (5, "0011 0111")]
)
def test_shared_takes_scores_of_any_sign_and_infinite_ones(count, kept):
    # Both zeros are equal, so the first of them comes first.
    scores = torch.tensor([[[[-1e30, -2.0, -0.0, 0.1]], [[-torch.inf, 3.0, 1e-40, 1e30]]]])
    chosen = shared_top_k(scores, count / 8, ones(1), ones(4)).int()
    assert " ".join("".join(map(str, row)) for row in chosen[0, :, 0].tolist()) == kept


def test_shared_ties_go_to_the_first_head_and_column():
    scores = torch.tensor([[[[5.0, -0.0, 0.0]], [[0.0, 0.0, 5.0]]]])
    assert shared_top_k(scores, 4 / 6, ones(1), ones(3)).flatten().int().tolist() == [
        *(1, 1, 1),
        *(0, 0, 1),
    ]


def test_shared_rows_of_a_batch_are_apart_and_sizes_may_differ_by_head():
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(2, 3, 7, 50, generator=generator)
    q_sizes, kv_sizes = (torch.randint(0, 90, (2, 3, n), generator=generator) for n in (7, 50))
    kept = shared_top_k(scores, 0.4, q_sizes, kv_sizes)
    pairs = q_sizes[..., None] * kv_sizes[..., None, :]
    held = (kept * pairs).sum((1, 2, 3)) / pairs.sum((1, 2, 3))
    largest = pairs.amax((1, 2, 3)) / pairs.sum((1, 2, 3))
    assert bool((held >= 0.4 - 1e-6).all())
    assert bool((held < 0.4 + largest).all())
    alone = shared_top_k(scores[1:], 0.4, q_sizes[1:], kv_sizes[1:])
    assert torch.equal(kept[1:], alone)


@settings(max_examples=150, deadline=None)
@given(maps())
def test_row_keeps_forced_blocks_and_one_per_row(case):
    scores, q_sizes, kv_sizes, forced, density = case
    kept = row_top_k(scores, density, q_sizes, kv_sizes, forced=forced)
    assert bool((kept | ~forced).all())
    assert bool(kept.any(-1).all())
    if density == 1:
        assert bool(kept.all())


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 1), st.integers(0, 99))
def test_row_meets_the_request_with_equal_blocks(Nq, Nkv, density, seed):
    if density * Nkv < 1:
        density = 1 / Nkv
    kept = row_top_k(scores_of(seed, 1, 2, Nq, Nkv), density, 5 * ones(Nq), 5 * ones(Nkv))
    counts = kept.sum(-1)
    assert int(counts.max() - counts.min()) <= 1
    assert bool(((counts.sum(-1) - density * Nq * Nkv).abs() <= 1).all())


def test_row_takes_full_text_rows_from_the_others():
    forced = torch.zeros(10, 10, dtype=torch.bool)
    forced[9] = forced[:, 9] = True
    kept = row_top_k(scores_of(1, 1, 1, 10, 10), 0.37, ones(10), ones(10), forced=forced)
    assert int(kept.sum()) == 37
    assert set(kept[0, 0, :9].sum(-1).tolist()) == {3}


@settings(max_examples=60, deadline=None)
@given(maps(), st.floats(0, 1), st.floats(0, 1))
def test_more_budget_only_adds_blocks(case, a, b):
    scores, q_sizes, kv_sizes, forced, _ = case
    low, high = sorted((max(a, 0.01), max(b, 0.01)))
    for kind in ("flat", "shared", "row", "top_p"):
        mass = torch.softmax(scores, -1)
        small, large = (
            Budget(kind, density=x, p=x).select(mass, forced, q_sizes, kv_sizes)
            for x in (low, high)
        )
        assert bool((large | ~small).all())


@pytest.mark.parametrize(
    ("p", "least", "kept"),
    # svg.md selection T2; 0.8 is reached exactly, and equality keeps one more.
    [(0, 0, 1), (0.79, 0, 2), (0.8, 0, 3), (0.9, 0, 3), (1, 0, 4), (0, 0.5, 2)],
)
def test_top_p_keeps_the_published_counts(p, least, kept):
    mass = torch.tensor([[[[0.5, 0.3, 0.15, 0.05]]]], dtype=torch.float64)
    assert int(top_p(mass, p, ones(4), min_density=least).sum()) == kept


def test_top_p_sums_near_uniform_rows_exactly_enough():
    # svg.md selection T5: a bfloat16 sum would keep all 1000.
    mass = torch.softmax(scores_of(2, 1, 1, 1, 1000) * 1e-3, -1)
    exact = mass.double().sort(-1, descending=True).values
    wanted = int((exact.cumsum(-1) - exact <= 0.9).sum())
    assert abs(int(top_p(mass, 0.9, ones(1000)).sum()) - wanted) <= 1


def test_threshold_keeps_what_reaches_it_and_the_best_of_each_row():
    scores = torch.tensor([[[[0.1, 0.9, 0.5], [0.1, 0.3, 0.2]]]])
    kept = Budget("threshold", threshold=0.5).select(scores, None, ones(2), ones(3))
    assert kept.tolist() == [[[[False, True, True], [False, True, False]]]]


def test_heads_are_independent():
    scores = scores_of(3, 2, 4, 9, 9)
    swap = torch.tensor([2, 0, 3, 1])
    for kind in ("flat", "row", "top_p", "threshold"):
        budget = Budget(kind, density=0.3, p=0.5, threshold=0.6)
        kept = budget.select(scores, None, ones(9), ones(9))
        swapped = budget.select(scores[:, swap], None, ones(9), ones(9))
        assert torch.equal(swapped, kept[:, swap])


@pytest.mark.parametrize(
    "wrong", [{"kind": "best"}, {"density": 0}, {"density": 1.1}, {"p": -0.1}, {"p": 2}]
)
def test_impossible_budgets_are_refused(wrong):
    with pytest.raises(UsageError, match=r"unknown|must lie"):
        Budget(**wrong)


def test_a_density_below_the_forced_one_names_the_least():
    check_density(0.25, 0.25, "text")
    with pytest.raises(UsageError) as error:
        check_density(0.2, 0.25004, "text and each block's own keys")
    assert str(error.value) == (
        "density=0.2 is too small here: text and each block's own keys always stay, 0.2500 of "
        "all query-key pairs; use a density of at least 0.2501"
    )


def test_row_takes_a_density_per_head():
    scores = scores_of(3, 2, 2, 8, 8)
    density = torch.tensor([[0.25, 0.5], [0.5, 0.75]], dtype=torch.float64)
    kept = row_top_k(scores, density[..., None], 5 * ones(8), 5 * ones(8))
    for b in range(2):
        for h in range(2):
            head = scores[b : b + 1, h : h + 1]
            alone = row_top_k(head, float(density[b, h]), 5 * ones(8), 5 * ones(8))
            assert torch.equal(kept[b, h], alone[0, 0])
