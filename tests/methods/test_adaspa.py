import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidsparse.attention import SparseAttention, attend_permuted, restore_output, run_plan
from vidsparse.errors import UsageError
from vidsparse.kernels.block_statistics import block_mass
from vidsparse.layout import VideoLayout
from vidsparse.methods.adaspa import AdaSpa
from vidsparse.methods.base import build_method
from vidsparse.methods.budget import flat_top_k, row_top_k
from vidsparse.methods.oracle import Oracle
from vidsparse.profiling.recall import oracle_recall, recall
from vidsparse.profiling.synthetic import video_qkv
from vidsparse.schedule import DenseSchedule

CPU = torch.device("cpu")
LAYOUT = VideoLayout(8, 8, 8)
TEXT = VideoLayout(6, 7, 9, text_before=5, text_after=30)
SMALL = (16, 16)


def tokens(layout=LAYOUT, H=4, B=1, seed=0):
    return video_qkv(layout, B, H, 16, CPU, torch.float32, seed=seed)


def method(density=0.25, **options):
    return AdaSpa(density, **{"blocks": SMALL, "search_at": (4, 12), **options})


def call(planner, qkv, layout, site, state):
    """One call as SparseAttention makes it: the plan and the output in natural order."""
    plan = planner.plan(*qkv, layout, site, state)
    output = attend_permuted(*qkv, plan)
    planner.observe(output, plan, site, state)
    return plan, restore_output(output, plan).out


def searched(planner, qkv, layout, cases, step=4):
    """The mask that a first search finds: the next call's."""
    state = planner.init_state()
    call(planner, qkv, layout, cases.site(step=step), state)
    return planner.plan(*qkv, layout, cases.site(step=step + 1), state), state


def dense(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def exact_map(q, k):
    return torch.softmax(q.double() @ k.double().mT / q.shape[-1] ** 0.5, -1)


def block_sums(weights, block=16):
    B, H, S, _ = weights.shape
    N = -(-S // block)
    wide = torch.nn.functional.pad(weights, (0, N * block - S, 0, N * block - S))
    return wide.view(B, H, N, block, N, block).sum((3, 5))


def research_case():
    """The numbers of cases A1 to A5: L = 8 tokens of size 4 in blocks of 2, and a drift per row."""
    draw = np.random.default_rng(0)
    for shape in ((4, 4), (16, 8), (16, 8), (16, 8)):  # what the cases before them drew
        draw.standard_normal(shape)
    qkv = [torch.from_numpy(draw.standard_normal((1, 1, 8, 4))).float() for _ in range(3)]
    return *qkv, torch.from_numpy(draw.standard_normal(8)).float()


TWOS = torch.full((4,), 2)


def test_a1_block_masses_sum_to_the_queries():
    q, k, *_ = research_case()
    mass = block_mass(q, k, block_q=2, block_kv=2)
    torch.testing.assert_close(mass.sum(-1), torch.full((1, 1, 4), 2.0))
    assert float(mass.sum()) == pytest.approx(8)


def test_a2_the_best_four_blocks_are_those_of_all_choices():
    q, k, *_ = research_case()
    mass = block_mass(q, k, block_q=2, block_kv=2).flatten()
    best = max(itertools.combinations(range(16), 4), key=lambda c: float(mass[list(c)].sum()))
    # Laid out as one row, so that the floor of one block per row plays no part.
    flat = flat_top_k(mass.view(1, 1, 1, 16), 4 / 16, TWOS[:1], TWOS.repeat(4))
    assert set(flat.flatten().nonzero()[:, 0].tolist()) == set(best)


def test_a3_the_best_two_blocks_of_each_row_recall_what_they_should():
    q, k, *_ = research_case()
    kept = row_top_k(block_mass(q, k, block_q=2, block_kv=2), 0.5, TWOS, TWOS)
    recalled = (block_sums(exact_map(q, k), 2) * kept).sum() / 8
    assert float(recalled) == pytest.approx(0.722313, abs=1e-6)


def test_a5_a_drift_of_rows_moves_the_flat_choice_alone():
    q, k, _, drift = research_case()
    lse = torch.logsumexp(q @ k.mT / 2, -1)
    masses = {
        name: block_mass(q, k, lse + shift, block_q=2, block_kv=2)
        for name, shift in (("none", 0.0), ("const", 0.7), ("rows", drift))
    }
    assert [round(float(m.sum()), 2) for m in masses.values()] == [8.0, 3.97, 14.66]
    rows = [row_top_k(m, 0.5, TWOS, TWOS) for m in masses.values()]
    flat = [flat_top_k(m, 0.5, TWOS, TWOS) for m in masses.values()]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])


@pytest.mark.parametrize("density", [0.125, 0.25, 0.5])
def test_a4_the_output_is_off_by_twice_the_dropped_mass_at_most(density, cases):
    q, k, v = tokens()
    plan, _ = searched(method(density), (q, k, v), LAYOUT, cases)
    keep = cases.natural_mask(plan, 1, 4)
    error = (run_plan(q, k, v, plan).out - dense(q, k, v)).norm(dim=-1)
    dropped = (exact_map(q, k) * ~keep).sum(-1)
    bound = 2 * dropped * v.norm(dim=-1).amax(-1, keepdim=True)
    assert bool((error <= bound + 1e-5).all())
    assert float(dropped.max()) > 0.05


@pytest.mark.parametrize("layout", [LAYOUT, TEXT, VideoLayout(5, 9, 11)])
@pytest.mark.parametrize("order", ["raster", "compact"])
def test_the_searched_mask_is_that_of_brute_force(layout, order, cases):
    q, k, v = tokens(layout, B=2)
    planner = method(0.375, heads="equal", order=order)
    plan, _ = searched(planner, (q, k, v), layout, cases)
    positions = slice(None) if plan.q_order is None else plan.q_order[0, 0].long()
    mass = block_sums(exact_map(q, k)[:, :, positions][..., positions])
    kept = plan.mask.to_dense()
    starts = torch.arange(kept.shape[-1]) * 16
    text = (starts < layout.text_before) | ((starts + 16).clamp(max=q.shape[2]) > layout.video_end)
    assert bool(kept[..., text].all())
    assert bool(kept[..., text, :].all())
    for b, h, i in itertools.product(range(2), range(4), torch.where(~text)[0].tolist()):
        ranked = mass[b, h, i].masked_fill(text, torch.inf).argsort(descending=True, stable=True)
        count = int(kept[b, h, i].sum())
        assert set(ranked[:count].tolist()) == set(kept[b, h, i].nonzero()[:, 0].tolist())
    counts = kept[:, :, ~text].sum(-1)
    assert int(counts.max() - counts.min()) <= 1
    assert float(plan.density()) == pytest.approx(0.375, abs=0.01)


def test_equal_rows_get_exactly_k_blocks(cases):
    plan, _ = searched(method(0.25, heads="equal"), tokens(), LAYOUT, cases)
    assert plan.mask.kv_num_blocks.unique().tolist() == [8]


def test_heads_that_recall_enough_give_budget_to_those_that_do_not(cases):
    q, k, v = tokens()
    q[:, 0] *= 6  # peaked: few blocks hold nearly everything
    q[:, 2] *= 0.05  # flat
    base, _ = searched(method(0.25, heads="equal"), (q, k, v), LAYOUT, cases)
    recalls = recall(q, k, base)[0]
    target = float(recalls.sort().values[-2:].mean())
    plan, _ = searched(
        method(0.25, heads="adaptive", enough_recall=target), (q, k, v), LAYOUT, cases
    )
    counts = plan.mask.kv_num_blocks[0, :, 0].tolist()
    expected = [8, 8, 8, 8]
    expected[int(recalls.argmax())], expected[int(recalls.argmin())] = 4, 12
    assert counts == expected
    assert float(plan.density()) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("layout", [LAYOUT, TEXT])
def test_shared_budgets_keep_most_mass_of_all_rules(layout, cases):
    q, k, v = tokens(layout)
    q[:, 0] *= 6
    q[:, 2] *= 0.05
    recalls = {}
    for heads in ("shared", "equal", "adaptive"):
        plan, _ = searched(method(0.5, heads=heads), (q, k, v), layout, cases)
        recalls[heads] = float(recall(q, k, plan).mean())
        assert float(plan.density()) == pytest.approx(0.5, abs=0.01)
    assert recalls["shared"] > recalls["adaptive"]
    assert recalls["shared"] > recalls["equal"]


@pytest.mark.parametrize("order", ["raster", "compact"])
def test_the_first_search_step_is_dense_and_counted_so(order, cases):
    q, k, v = tokens(TEXT, B=2)
    planner = method(0.4, order=order)
    plan, out = call(planner, (q, k, v), TEXT, cases.site(step=4), planner.init_state())
    assert plan.dense_reason == "adaspa search"
    torch.testing.assert_close(out, dense(q, k, v), atol=1e-5, rtol=1e-5)


def test_every_later_output_is_attention_under_its_own_mask(cases):
    planner, state = method(), None
    for step in range(4, 15):
        q, k, v = tokens(seed=step)
        state = state or planner.init_state()
        plan, out = call(planner, (q, k, v), LAYOUT, cases.site(step=step), state)
        expected = cases.masked_attention(q, k, v, cases.natural_mask(plan, 1, 4))
        torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_masks_are_reused_between_searches_and_found_anew_at_one(cases):
    planner = method(heads="equal", stale_factor=1.0001)
    state = planner.init_state()
    q, k, v = tokens()
    call(planner, (q, k, v), LAYOUT, cases.site(step=4), state)
    other = tokens(seed=9)
    masks = {}
    for step in (5, 11, 12, 13):
        plan, _ = call(planner, other, LAYOUT, cases.site(step=step), state)
        assert plan.dense_reason is None
        masks[step] = plan.mask.to_dense()
    assert torch.equal(masks[5], masks[11])
    assert torch.equal(masks[12], masks[13])
    assert not torch.equal(masks[11], masks[12])
    # Rows that drift at all are stale here: the mask is that of an exact search.
    exact, _ = searched(planner, other, LAYOUT, cases)
    assert torch.equal(masks[12], exact.mask.to_dense())


def test_a_later_search_of_the_same_tokens_finds_the_same_mask(cases):
    planner, qkv = method(), tokens()
    plan, state = searched(planner, qkv, LAYOUT, cases)
    again, _ = call(planner, qkv, LAYOUT, cases.site(step=12), state)
    assert torch.equal(plan.mask.to_dense(), again.mask.to_dense())


def test_only_rows_whose_lse_is_stale_get_a_new_one(cases):
    # One more search is to come: the log-sum-exp stays.
    planner, (q, k, v) = method(stale_factor=2.0, search_at=(4, 12, 16)), tokens()
    _, state = searched(planner, (q, k, v), LAYOUT, cases)
    fresh = state.lse.clone()
    state.lse = fresh.clone()
    state.lse[:, 1, 16:32] += 1.0  # beyond a factor of 2
    state.lse[:, 2, 32:48] += 0.5  # within
    call(planner, (q, k, v), LAYOUT, cases.site(step=12), state)
    torch.testing.assert_close(state.lse[:, 1], fresh[:, 1])
    torch.testing.assert_close(state.lse[:, 2, 32:48], fresh[:, 2, 32:48] + 0.5)


def test_a_lost_lse_is_searched_again_exactly(cases):
    planner, qkv = method(), tokens()
    plan, state = searched(planner, qkv, LAYOUT, cases)
    # So far off that every weight overflows, or vanishes.
    assert state.lse is not None
    state.lse = torch.where(torch.arange(LAYOUT.num_tokens) < 256, -200.0, 200.0) + state.lse
    again, _ = call(planner, qkv, LAYOUT, cases.site(step=12), state)
    assert torch.equal(plan.mask.to_dense(), again.mask.to_dense())


def test_a_skipped_search_step_only_delays_the_search(cases):
    planner = method(stale_factor=1.0001)
    _, state = searched(planner, tokens(), LAYOUT, cases)
    other = tokens(seed=3)
    plan, _ = call(planner, other, LAYOUT, cases.site(step=14), state)
    exact, _ = searched(planner, other, LAYOUT, cases)
    assert torch.equal(plan.mask.to_dense(), exact.mask.to_dense())
    assert state.points == 2


def test_other_shapes_layouts_and_earlier_steps_begin_anew(cases):
    planner = method()
    for change in ("layout", "shape", "step"):
        _, state = searched(planner, tokens(), LAYOUT, cases, step=6)
        others = {"layout": VideoLayout(8, 4, 16), "shape": VideoLayout(8, 8, 9)}
        layout = others.get(change, LAYOUT)
        site = cases.site(step=3 if change == "step" else 8)
        plan, _ = call(planner, tokens(layout), layout, site, state)
        assert plan.dense_reason == "adaspa search", change


def test_without_observe_no_mask_is_taken_for_granted(cases):
    planner, qkv, state = method(), tokens(), None
    state = planner.init_state()
    for step in (4, 5):
        plan = planner.plan(*qkv, LAYOUT, cases.site(step=step), state)
        assert plan.dense_reason == "adaspa search"


def test_the_first_sparse_step_searches_wherever_it_is(cases):
    planner = method(search_at=(0.2, 0.6))
    for step, num_steps in ((0, 50), (25, 50), (1, 4)):
        state = planner.init_state()
        site = replace(cases.site(step=step), num_steps=num_steps)
        plan = planner.plan(*tokens(), LAYOUT, site, state)
        assert plan.dense_reason == "adaspa search"


def test_noise_levels_schedule_searches_too(cases):
    planner = AdaSpa(0.25, blocks=SMALL, search_sigmas=(0.8, 0.4))
    state = planner.init_state()
    kinds = []
    for step, sigma in enumerate((0.9, 0.8, 0.5, 0.3, 0.2)):
        site = replace(cases.site(step=step), sigma=sigma, num_steps=None)
        before = state.points, state.bits is None
        call(planner, tokens(seed=step), LAYOUT, site, state)
        kinds.append((state.points - before[0], before[1]))
    assert kinds == [(0, True), (1, False), (0, False), (1, False), (0, False)]


def test_recall_at_the_search_step_is_the_oracles_on_the_same_rule(cases):
    layout = VideoLayout(6, 10, 13)
    q, k, v = tokens(layout)
    planner = method(0.25, heads="equal")
    plan, _ = searched(planner, (q, k, v), layout, cases)
    best = Oracle(0.25, blocks=SMALL, budget="row").plan(q, k, v, layout, cases.site(), None)
    torch.testing.assert_close(recall(q, k, plan), recall(q, k, best))
    ceiling = oracle_recall(q, k, 0.25, *SMALL)
    assert float(recall(q, k, plan).mean() / ceiling.mean()) > 0.97


def test_the_state_is_bits_and_one_float_per_query(cases):
    planner = method()
    _, state = searched(planner, tokens(B=2), LAYOUT, cases)
    heads, blocks = 2 * 4, 32
    assert state.waiting is None
    assert planner.state_bytes(state) == heads * (blocks * blocks // 8 + 4 * LAYOUT.num_tokens)


def test_the_lse_goes_with_the_last_search(cases):
    planner = method()
    _, state = searched(planner, tokens(), LAYOUT, cases)
    call(planner, tokens(), LAYOUT, cases.site(step=12), state)
    assert state.lse is None
    assert planner.state_bytes(state) == 4 * 32 * 32 // 8
    plan, _ = call(planner, tokens(), LAYOUT, cases.site(step=19), state)
    assert plan.dense_reason is None


@pytest.mark.parametrize(("step", "searches_densely"), [(6, False), (14, True)])
def test_another_density_never_gets_the_old_ones_mask(step, searches_densely, cases):
    low, high = method(0.25), method(0.5)
    _, state = searched(low, tokens(), LAYOUT, cases)
    call(low, tokens(), LAYOUT, cases.site(step=step - 1), state)
    plan, _ = call(high, tokens(), LAYOUT, cases.site(step=step), state)
    assert (plan.dense_reason is not None) == searches_densely
    plan, _ = call(high, tokens(), LAYOUT, cases.site(step=step + 1), state)
    assert float(plan.density()) == pytest.approx(0.5, abs=0.01)


def test_branches_have_states_of_their_own(cases):
    attention = SparseAttention(method(), DenseSchedule(dense_steps=0))
    for step, branch in itertools.product((4, 5, 12), (0, 1)):
        site = cases.site(step=step, branch=branch)
        attention(*tokens(seed=branch), layout=LAYOUT, site=site)
    assert attention.recorder.dense == {"adaspa search": 2}
    assert attention.recorder.sparse_calls == 4
    bits, lse = 32 * 32 // 8, 4 * LAYOUT.num_tokens
    # The last search dropped the log-sum-exps.
    assert attention.state_bytes() == 2 * 4 * bits
    assert attention.most_state_bytes() == 2 * 4 * (bits + lse)
    attention.reset()
    assert attention.state_bytes() == 0
    assert attention.most_state_bytes() == 2 * 4 * (bits + lse)


def test_rows_of_a_batch_and_their_heads_are_apart(cases):
    q, k, v = (torch.cat(pair) for pair in zip(tokens(seed=1), tokens(seed=2), strict=True))
    both, _ = searched(method(), (q, k, v), LAYOUT, cases)
    for row in range(2):
        part = slice(row, row + 1)
        alone, _ = searched(method(), (q[part], k[part], v[part]), LAYOUT, cases)
        assert torch.equal(both.mask.to_dense()[part], alone.mask.to_dense())


def test_phases_name_every_sparse_step_once():
    first, later, reuse = AdaSpa().phases(50, 10)
    assert (first.steps, later.steps) == ((10,), (30,))
    assert [p.searches for p in (first, later, reuse)] == [True, True, False]
    assert sorted(first.steps + later.steps + reuse.steps) == list(range(10, 50))
    assert AdaSpa(search_sigmas=(0.5,)).phases(50, 10) == ()
    assert [p.steps for p in AdaSpa().phases(4, 1)] == [(1,), (2,), (3,)]
    assert [p.steps for p in AdaSpa(search_at=(10, 12)).phases(14, 11)] == [(11,), (12,), (13,)]


def test_lists_from_json_are_taken():
    assert build_method("adaspa", {"search_at": [0.2, 0.6]}) == AdaSpa()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"density": 0.8, "heads": "adaptive"},
            r"use at most 0\.6667, 1 for dense attention, or heads='equal'",
        ),
        ({"density": 0.0}, r"must lie in \(0, 1\]"),
        ({"heads": "best"}, "'adaptive', 'equal', 'shared'"),
        ({"order": "spiral"}, "'raster' or 'compact'"),
        ({"enough_recall": 1.5}, r"must lie in \[0, 1\]"),
        ({"stale_factor": 1.0}, "must be above 1"),
        ({"frames": 2}, "order='compact'"),
        ({"frames": 0}, "at least 1"),
        ({"blocks": (1, 16), "frames": 2, "order": "compact"}, "must hold a token"),
        ({"search_at": (0.2, 1.5)}, r"\[0, 1\)"),
        ({"search_at": (4,), "search_sigmas": (0.5,)}, "exclude each other"),
    ],
)
def test_bad_parameters_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        AdaSpa(**options)


def test_search_steps_outside_the_run_are_refused(cases):
    planner = AdaSpa(0.25, search_at=(10, 30), blocks=SMALL)
    with pytest.raises(UsageError, match="lies outside a run of 20 steps"):
        planner.plan(*tokens(), LAYOUT, cases.site(), planner.init_state())


def test_shares_of_an_unknown_run_are_refused(cases):
    site = replace(cases.site(), num_steps=None)
    with pytest.raises(UsageError, match="give num_steps= to handle"):
        AdaSpa(0.25, blocks=SMALL).plan(*tokens(), LAYOUT, site, AdaSpa().init_state())


def test_a_density_that_leaves_some_heads_less_than_the_text_is_refused(cases):
    qkv = tokens(TEXT)
    equal = method(0.3, heads="equal")
    assert equal.plan(*qkv, TEXT, cases.site(), equal.init_state()) is not None
    with pytest.raises(UsageError, match=r"leaves the heads that recall most .* heads='equal'"):
        method(0.3, heads="adaptive").plan(*qkv, TEXT, cases.site(), AdaSpa().init_state())
    with pytest.raises(UsageError, match="too small here: text"):
        method(0.1).plan(*qkv, TEXT, cases.site(), AdaSpa().init_state())


def test_density_one_is_dense(cases):
    assert AdaSpa(1.0).plan(*tokens(), LAYOUT, cases.site(), AdaSpa().init_state()) is None
