"""LiteAttention over a run: what it carries, what it starts from, thresholds, what it refuses."""

import itertools
from dataclasses import replace

import pytest
import torch

from vidsparse.attention import SparseAttention, run_plan
from vidsparse.errors import UsageError
from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import build_method
from vidsparse.methods.lite import Lite
from vidsparse.schedule import DenseSchedule

LAYOUT = VideoLayout(4, 6, 10)
BLOCKS = {"blocks": (16, 8)}
RUNNING = {"criterion": "running_mass", **BLOCKS}


def masks(calls):
    return [plan.mask.to_dense() for plan, _, _ in calls]


@pytest.mark.parametrize("criterion", ["running_mass", "previous_mass", "running_max"])
def test_state_of_wan_14b_at_720p_stays_below_100_mib_per_branch(criterion, cases):
    layout = VideoLayout(21, 45, 80)
    S, heads, layers = layout.num_tokens, 40, 40
    method = Lite(0.5, criterion=criterion, blocks=(128, 128))
    q = torch.zeros(1, 1, S, 1)
    state = method.init_state()
    plan = method.plan(q, q, q, layout, cases.site(), state)
    method.observe(AttentionOutput(q, torch.zeros(1, 1, S)), plan, cases.site(), state)
    size = method.state_bytes(state) * heads * layers
    assert state.tiles.bits.shape == (1, 1, 591, 74)
    assert 60 < size / 2**20 < 100
    assert (state.tiles.lse is not None) == (criterion == "previous_mass")


def attention_of(method):
    return SparseAttention(method, DenseSchedule(dense_steps=2))


def test_states_end_with_the_generation_and_branches_and_rows_keep_their_own(cases):
    layout = VideoLayout(5, 8, 10)
    attention = attention_of(Lite(threshold=0.4, **RUNNING))
    tokens = cases.video(5, layout, B=2)
    rows = attention.recorder.rows
    attention.recorder.keep_sites = True

    def densities(generation, branch):
        for step in range(5):
            attention(*tokens, layout=layout, site=cases.site(step, 0, branch, generation))
        return [round(float(density), 6) for _, density in rows[-5:]]

    first = densities(0, 0)
    assert first[:3] == [1, 1, 1]  # two dense steps, then the first look
    assert first[4] < 1
    other = densities(0, 1)
    assert other == first  # a new branch looks for itself, at the same tokens
    assert densities(1, 0) == first
    dense = [float(reason) for _, reason in rows if not isinstance(reason, torch.Tensor)]
    assert dense == [1.0] * 9
    counted = attention.recorder.dense
    assert counted == {"dense steps": 6, "lite looks at every tile": 3}
    assert 0 < attention.recorder.error_bound() < 1


def test_a_batch_row_knows_nothing_of_the_other(cases):
    method = Lite(threshold=0.4, **RUNNING)
    alone, together = method.init_state(), method.init_state()
    one, two = cases.video(6, LAYOUT), cases.video(7, LAYOUT)
    both = [torch.cat(pair) for pair in zip(one, two, strict=True)]
    for step in range(4):
        site = cases.site(step=step)
        plans = [method.plan(*one, LAYOUT, site, alone), method.plan(*both, LAYOUT, site, together)]
        for tokens, plan, state in ((one, plans[0], alone), (both, plans[1], together)):
            method.observe(run_plan(*tokens, plan), plan, site, state)
        assert torch.equal(plans[0].mask.to_dense(), plans[1].mask.to_dense()[:1])
    assert not torch.equal(plans[1].mask.to_dense()[0], plans[1].mask.to_dense()[1])


def test_a_step_that_a_cache_leaves_out_changes_nothing(cases):
    kept = []
    for steps in ((0, 1, 2), (0, 3, 7)):
        method = Lite(threshold=0.4, **RUNNING)
        state, tokens = method.init_state(), cases.video(8, LAYOUT)
        for step in steps:
            plan = method.plan(*tokens, LAYOUT, cases.site(step=step), state)
            method.observe(run_plan(*tokens, plan), plan, cases.site(step=step), state)
        kept.append(plan.mask.to_dense())
    assert torch.equal(*kept)


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "running_mass", "threshold": 0.4},
        {"criterion": "running_max", "threshold": -2.5},
        {"criterion": "running_mass", "density": 0.6},
    ],
    ids=["mass", "max", "density"],
)
def test_a_refresh_looks_at_all_tiles_again(options, cases):
    calls = cases.run(Lite(refresh_every=4, **BLOCKS, **options), 9, LAYOUT)
    full = [float(plan.density()) == 1 for plan, _, _ in calls]
    assert [full[n] for n in (0, 4, 8)] == [True] * 3
    assert [full[n] for n in (3, 7)] == [False] * 2


def test_an_earlier_step_or_another_layout_begins_anew(cases):
    method = Lite(threshold=0.4, **RUNNING)
    state = method.init_state()
    assert float(cases.run(method, 3, LAYOUT, state=state)[-1][0].density()) < 1
    assert float(cases.run(method, 1, LAYOUT, state=state, start=0)[0][0].density()) == 1
    turned = VideoLayout(4, 10, 6)
    assert float(cases.run(method, 2, LAYOUT, state=state, start=1)[-1][0].density()) < 1
    assert float(cases.run(method, 1, turned, state=state, start=3)[0][0].density()) == 1


# Seeds.


def test_a_draft_seed_is_pruned_from_its_first_call_on(cases):
    layout = VideoLayout(4, 12, 16)
    method = Lite(threshold=0.9, criterion="running_mass", seed="draft", seed_density=0.5)
    draft = build_method("draft", {"density": 0.5})
    calls = cases.run(method, 4, layout)
    assert calls[0][0].error_bound is None  # nobody weighed what the seed left out
    expected = draft.plan(*calls[0][1], layout, cases.site(), draft.init_state())
    kept = masks(calls)
    assert torch.equal(kept[0], expected.mask.to_dense())
    assert torch.equal(calls[0][0].q_order, expected.q_order)
    assert all(not bool((b & ~a).any()) for a, b in itertools.pairwise(kept))
    assert float(calls[-1][0].density()) < float(calls[0][0].density())
    for plan, tokens, output in calls:
        expected = cases.masked_attention(*tokens, cases.natural_mask(plan, 1, 2))
        torch.testing.assert_close(output.out.double(), expected, atol=1e-5, rtol=1e-5)


def test_means_in_place_of_skipped_tiles_leave_the_choice_alone_and_the_bound_open(cases):
    plain, compensated = (Lite(0.6, compensate=on, **BLOCKS) for on in (False, True))
    q, k, v = cases.video(9, LAYOUT)
    for method in (plain, compensated):
        state = method.init_state()
        for step in range(3):
            plan = method.decide(q, k, v, LAYOUT, cases.site(step=step), state)
            output = run_plan(q, k, v, plan)
            method.observe(output, plan, cases.site(step=step), state)
        if method is plain:
            kept, error = plan.mask.to_dense(), output.out
            assert plan.error_bound is not None
    assert torch.equal(plan.mask.to_dense(), kept)
    assert plan.error_bound is None
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert float((output.out - dense).norm()) < float((error - dense).norm())


def test_a_refresh_asks_the_seed_again(cases):
    layout = VideoLayout(4, 12, 16)
    method = Lite(
        threshold=0.9, criterion="running_mass", seed="draft", seed_density=0.4, refresh_every=3
    )
    calls = cases.run(method, 6, layout)
    draft = build_method("draft", {"density": 0.4})
    again = draft.plan(*calls[3][1], layout, cases.site(), draft.init_state())
    assert torch.equal(calls[3][0].mask.to_dense(), again.mask.to_dense())


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ("svg2", "seed='svg2' keeps blocks of unequal size"),
        ("lite", "cannot start from itself"),
        ("best", "unknown method 'best'"),
    ],
)
def test_seeds_that_cannot_be_pruned_are_refused(seed, message, cases):
    with pytest.raises(UsageError, match=message):
        cases.run(Lite(threshold=0.5, seed=seed), 1, VideoLayout(4, 12, 16))


# Thresholds.


def table(**changes):
    values = {
        "criterion": "running_mass",
        "blocks": [16, 8],
        "layers": {"transformer": [[0.1 * layer, 0.05] for layer in range(8)]},
    }
    return {**values, **changes}


def test_thresholds_hold_by_layer_and_part_of_the_steps(cases):
    method = Lite(thresholds=table(), **RUNNING)
    found = [method.thresholds.of(cases.site(step, layer)) for layer, step in
             ((0, 0), (3, 9), (3, 10), (3, 19))]  # fmt: skip
    assert found == [0.0, pytest.approx(0.3), 0.05, 0.05]
    several = [masks(cases.run(method, 2, LAYOUT, layer=layer))[-1] for layer in (0, 4, 7)]
    assert [float(x.float().mean()) for x in several] == sorted(
        (float(x.float().mean()) for x in several), reverse=True
    )
    assert float(several[0].float().mean()) == 1
    alone = masks(cases.run(Lite(threshold=0.1 * 7, **RUNNING), 2, LAYOUT))[-1]
    assert torch.equal(several[2], alone)
    assert method.thresholds.as_values() == table()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": -10.0}, r"must lie in \[0, 1\] .* log2"),
        ({"threshold": 1.5}, r"must lie in \[0, 1\]"),
        ({"criterion": "previous_mass", "threshold": -10}, r"must lie in \[0, 1\]"),
        ({"criterion": "running_max", "threshold": 10.0}, "must be below 0 .* log2"),
        ({"criterion": "running_max", "threshold": 0.0}, "must be below 0"),
        ({"threshold": float("nan")}, "must be a number"),
        ({"threshold": True}, "must be a number"),
        ({"threshold": "0.1"}, "must be a number"),
        ({"criterion": "best"}, "criterion='best' is unknown; use one of previous_mass"),
        ({"order": "spiral"}, "order='spiral' is unknown"),
        ({"heads": "rows"}, "heads='rows' is unknown"),
        ({"frames": 2}, "above 1, order='compact'"),
        ({"refresh_every": 1}, "refresh_every=1 must be at least 2"),
        ({"seed": "draft", "seed_density": 0.0}, r"seed_density=0.0 must lie in \(0, 1\]"),
        ({"blocks": (0, 8)}, "blocks="),
        ({"density": 0.0}, r"density=0.0 must lie in \(0, 1\]"),
        ({"thresholds": 0.1}, "must be a table with .* a single number goes to threshold="),
        ({"thresholds": table(), "threshold": 0.1, "criterion": "running_mass"}, "both given"),
        ({"thresholds": table()}, "are for criterion 'running_mass', not 'previous_mass'"),
        ({"thresholds": table(extra=1)}, "unknown 'extra'"),
        ({"thresholds": {"criterion": "running_mass"}}, "no 'blocks'"),
        ({"thresholds": table(layers={"transformer": [[-3.0]]})}, r"transformer 0=-3.0 must lie"),
        ({"thresholds": table(layers={"transformer": [[0.1], [0.1, 0.2]]})}, "2 segments"),
        ({"thresholds": table(layers={})}, "a row of thresholds for every layer"),
    ],
)
def test_impossible_parameters_are_refused_with_the_reason(wrong, message):
    with pytest.raises(UsageError, match=message):
        Lite(**wrong)


def test_thresholds_of_another_model_tile_or_unknown_steps_are_refused(cases):
    method = Lite(thresholds=table(), **RUNNING)
    site = cases.site()
    with pytest.raises(UsageError, match=r"another model: .*8 layers, and this is .* 30 layers"):
        method.thresholds.of(replace(site, num_layers=30))
    with pytest.raises(UsageError, match="transformer_2 with 8 layers"):
        method.thresholds.of(replace(site, transformer="transformer_2"))
    with pytest.raises(UsageError, match=r"give num_steps= to handle.generation"):
        method.thresholds.of(replace(site, num_steps=None))
    with pytest.raises(UsageError, match=r"tiles of 16 x 8 tokens and the kernels take 64 x 64"):
        cases.run(Lite(thresholds=table(), criterion="running_mass"), 1, LAYOUT)


def test_a_density_that_text_alone_exceeds_is_refused(cases):
    layout = VideoLayout(2, 6, 10, text_after=100)
    with pytest.raises(UsageError, match=r"density=0\.3 is too small here: text"):
        cases.run(Lite(0.3, **BLOCKS), 1, layout)


def test_density_one_is_dense(cases):
    method = Lite(1.0)
    tokens = cases.video(0, LAYOUT)
    assert method.plan(*tokens, LAYOUT, cases.site(), method.init_state()) is None
