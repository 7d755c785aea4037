"""LiteAttention: which tiles go, case by case of the research (draft_lite_adaspa.md 5.4).

L1 L2 L3 L4 L9: the rule on tile maxima. L5, upstream's range lists: bits have none of their
defects. L6: text_tiles. L8: worst_case. L7, memory, is in test_lite_state.py. The invariants
behind them: one test each.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidsparse.attention import run_plan
from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.running_statistics import RunningStat, running_statistic
from vidsparse.kernels.tile_drop import tile_weights
from vidsparse.layout import VideoLayout
from vidsparse.methods.lite import Lite
from vidsparse.methods.lite_weights import tile_scales
from vidsparse.methods.mask_bits import mask_from_bits, pack_bits

LAYOUT = VideoLayout(4, 6, 10)
TEXTS = [
    LAYOUT,
    VideoLayout(3, 7, 9, text_before=21),
    VideoLayout(3, 7, 9, text_after=13),
]
BLOCKS = {"blocks": (16, 8)}
RUNNING = {"criterion": "running_mass", **BLOCKS}
CRITERIA = [
    {"criterion": "running_mass", "threshold": 0.4},
    {"criterion": "previous_mass", "threshold": 0.4},
    {"criterion": "running_max", "threshold": -2.5},
    {"criterion": "running_mass", "density": 0.6},
    {"criterion": "previous_mass", "density": 0.6},
    {"criterion": "running_max", "density": 0.6},
]


def ids(options):
    return "-".join(str(x) for x in options.values())


# The rule on tile maxima: one query block, one key per tile.


def lite_step(maxima, kept, threshold, *, backwards):
    """Ours: maxima (rows, tiles) in log2 units; returns the tiles kept next."""
    rows, tiles = maxima.shape
    q = torch.eye(rows)[None, None]
    k = torch.tensor(maxima.T, dtype=torch.float32)[None, None] / math.log2(math.e)
    bits = pack_bits(kept[None, None, None])
    mask = mask_from_bits(bits, blocks=(rows, 1), seq_q=rows, seq_kv=tiles, backwards=backwards)
    stat = running_statistic(q, k, mask, RunningStat.MAX, scale=1.0)[0, 0, 0]
    return kept & ~(stat <= threshold)


def steps_of(maxima, threshold, directions):
    kept = torch.ones(maxima.shape[1], dtype=torch.bool)
    for backwards in directions:
        kept = lite_step(maxima, kept, threshold, backwards=backwards)
    return kept


def numbers(kept):
    return kept.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("threshold", "directions", "kept"),
    [
        (-10, (False,), [0, 1, 3, 4]),
        (-10, (True,), [0, 1, 3, 4]),
        (-10, (False, True), [0, 1, 3, 4]),
        (-6, (False,), [0, 1, 3]),
        # The paper keeps 4 too, the first tile it visits; here that is compared with the others.
        (-6, (True,), [0, 3]),
        (-6, (False, True), [0, 3]),
    ],
)
def test_one_row_keeps_what_the_paper_keeps(threshold, directions, kept):
    maxima = np.array([[0.0, -3.0, -12.0, 5.0, -4.0]])
    assert numbers(steps_of(maxima, threshold, directions)) == kept


def test_one_row_that_needs_a_tile_keeps_it():
    maxima = np.array([[0.0, -12.0], [0.0, -9.0]])
    assert numbers(steps_of(maxima, -10, (False,))) == [0, 1]
    assert numbers(steps_of(maxima[:1], -10, (False,))) == [0]


def test_extreme_thresholds_keep_all_or_what_raises_the_maximum():
    maxima = np.random.default_rng(1).standard_normal((4, 12)) * 6
    assert len(numbers(steps_of(maxima, -math.inf, (False, True)))) == 12
    # Just below 0 only tiles that raise the maximum of a row, from both sides, stay.
    kept = numbers(steps_of(maxima, -1e-6, (False, True) * 3))
    assert set(maxima.argmax(1)) <= set(kept)
    assert len(kept) < 12


def test_tiles_within_the_threshold_of_the_row_maximum_always_stay_and_no_tile_returns():
    for seed in range(300):
        maxima = np.random.default_rng(seed).standard_normal((4, 12)) * 6
        heavy = torch.tensor((maxima - maxima.max(1, keepdims=True) > -8).any(0))
        kept = torch.ones(12, dtype=torch.bool)
        for call in range(6):
            after = lite_step(maxima, kept, -8, backwards=call % 2 == 1)
            assert not bool((after & ~kept).any())
            assert bool(after[heavy].all())
            kept = after


def test_frozen_tokens_settle_after_two_calls_in_alternating_directions():
    for seed in range(300):
        maxima = np.random.default_rng(seed).standard_normal((4, 12)) * 6
        settled = [steps_of(maxima, -8, ((False, True) * 3)[:n]) for n in (2, 3, 4)]
        assert all(torch.equal(settled[0], later) for later in settled[1:])


# The method.


@pytest.mark.parametrize("options", CRITERIA, ids=ids)
@pytest.mark.parametrize("order", ["raster", "compact"])
@pytest.mark.parametrize("layout", TEXTS, ids=["video", "text-before", "text-after"])
def test_output_is_attention_under_the_tiles_kept_by_the_calls_before(
    options, order, layout, cases
):
    calls = cases.run(Lite(order=order, **BLOCKS, **options), 5, layout)
    for plan, tokens, output in calls:
        keep = cases.natural_mask(plan, 1, 2)
        expected = cases.masked_attention(*tokens, keep)
        torch.testing.assert_close(output.out.double(), expected, atol=1e-5, rtol=1e-5)
        assert float(plan.density()) == pytest.approx(float(keep.float().mean()), abs=1e-6)
        text = torch.ones(layout.num_tokens, dtype=torch.bool)
        text[layout.text_before : layout.video_end] = False
        assert bool(keep[..., text].all())
        assert bool(keep[..., text, :].all())
        assert bool(keep.diagonal(dim1=-2, dim2=-1).all())
    assert float(calls[0][0].density()) == 1
    assert float(calls[-1][0].density()) < 0.9


def test_kept_tiles_only_shrink_in_three_hundred_random_runs(cases):
    layout = VideoLayout(2, 7, 10, text_before=4)
    q = torch.zeros(1, 2, layout.num_tokens, 1)
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        blocks = [(16, 8), (16, 12), (24, 16), (10, 20)][seed % 4]
        method = Lite(blocks=blocks, **CRITERIA[seed % len(CRITERIA)])
        state, before = method.init_state(), torch.tensor(True)
        for step in range(5):
            plan = method.plan(q, q, q, layout, cases.site(step=step), state)
            kept = plan.mask.to_dense()
            assert not bool((kept & ~before).any())
            stats = torch.randn(1, 2, *kept.shape[2:], generator=generator).exp() * 2
            stats = -stats if plan.running is RunningStat.MAX else stats
            asked = plan.running is not None or plan.stats_lse is not None
            lse = torch.randn(1, 2, layout.num_tokens, generator=generator)
            output = AttentionOutput(q, lse, stats if asked else None)
            method.observe(output, plan, cases.site(step=step), state)
            before = kept
        assert not bool(kept.all())


def test_a_tile_goes_when_and_only_when_it_is_at_most_the_threshold(cases):
    calls = cases.run(Lite(threshold=0.4, **RUNNING), 2, LAYOUT)
    (plan, (q, k, _), _), after = calls[0], calls[1][0].mask.to_dense()
    share = running_statistic(q, k, plan.mask, RunningStat.MASS) / 16
    own = torch.arange(15)[:, None] == torch.arange(30) // 2
    assert torch.equal(after, (share > 0.4 * 8 / 240) | own)


def test_directions_alternate_while_tiles_may_still_go(cases):
    for options, expected in (({"threshold": 0.4}, [0, 1, 0]), ({"density": 0.6}, [0, 1, 1])):
        plans = [plan for plan, _, _ in cases.run(Lite(**RUNNING, **options), 3, LAYOUT)]
        firsts = [int(plan.mask.kv_indices[0, 0, 7, 0] > plan.mask.kv_indices[0, 0, 7, 1])
                  for plan in plans]  # fmt: skip
        assert firsts == expected
        assert plans[0].running is RunningStat.MASS
        assert (plans[2].running is None) == ("density" in options)


@pytest.mark.parametrize("criterion", ["running_mass", "previous_mass", "running_max"])
def test_a_density_is_met_from_the_second_look_on(criterion, cases):
    layout = VideoLayout(4, 6, 10, text_after=8)
    calls = cases.run(Lite(0.5, criterion=criterion, **BLOCKS), 5, layout)
    kept = [plan.mask.density() for plan, _, _ in calls]
    full = 2 if criterion == "previous_mass" else 1
    assert [float(x) for x in kept[:full]] == [1.0] * full
    for density in kept[full:]:
        assert 0.5 <= float(density) <= 0.5 + 16 * 8 / layout.num_tokens**2


def test_a_density_may_change_between_steps(cases):
    # As it does with a preset's bands.
    method = Lite(0.7, **BLOCKS)
    state, before = method.init_state(), None
    for step, (density, expected) in enumerate(
        [(0.7, 1), (0.7, 1), (0.7, 0.7), (0.5, 0.7), (0.5, 0.7), (0.5, 0.5), (0.6, 1), (0.6, 1),
         (0.6, 0.6)]
    ):  # fmt: skip
        now = replace(method, density=density)
        tokens = cases.video(2, LAYOUT)
        plan = now.plan(*tokens, LAYOUT, cases.site(step=step), state)
        now.observe(run_plan(*tokens, plan), plan, cases.site(step=step), state)
        assert expected - 1e-6 <= float(plan.density()) <= expected + 0.01
        if before is not None and expected < 1:
            assert not bool((plan.mask.to_dense() & ~before).any())
        before = plan.mask.to_dense()


def test_heads_may_compete_for_one_budget(cases):
    q, k, v = cases.video(4, LAYOUT)
    q[:, 0] *= 3  # a head that looks at few keys
    kept = {}
    for heads in ("equal", "shared"):
        method = Lite(0.5, heads=heads, **BLOCKS)
        state = method.init_state()
        for step in range(3):
            plan = method.plan(q, k, v, LAYOUT, cases.site(step=step), state)
            method.observe(run_plan(q, k, v, plan), plan, cases.site(step=step), state)
        kept[heads] = plan.mask.to_dense().float().mean((0, 2, 3))
        assert 0.5 <= float(plan.density()) <= 0.51
    assert float(kept["equal"][0]) == float(kept["equal"][1])
    assert float(kept["shared"][0]) < float(kept["shared"][1]) - 0.1


def test_the_partial_last_tiles_of_queries_and_keys_can_go(cases):
    layout = VideoLayout(3, 7, 10)  # 210 tokens: 2 rows and 2 keys remain
    q, k, v = cases.video(3, layout, H=1)
    k[:, :, -2:] = -k[:, :, -2:].sign() * 9  # light for everybody
    q, k = q.abs(), torch.cat((k[:, :, :-2].abs(), -k[:, :, -2:].abs()), 2)
    for options in (
        {"criterion": "running_mass", "threshold": 0.4},
        {"criterion": "running_max", "threshold": -3},
    ):
        method = Lite(blocks=(16, 16), **options)
        state = method.init_state()
        for step in range(3):
            site = cases.site(step=step)
            plan = method.plan(q, k, v, layout, site, state)
            method.observe(run_plan(q, k, v, plan), plan, site, state)
        kept = plan.mask.to_dense()[0, 0]
        assert kept[:, -1].tolist() == [False] * 13 + [True]  # its own row only
        assert not bool(kept[-1, :-1].all())


@pytest.mark.parametrize("options", CRITERIA, ids=ids)
def test_the_error_stays_below_its_bound(options, cases):
    # Frozen tokens: the bound speaks of tiles as they were when they went.
    method = Lite(**BLOCKS, **options)
    state = method.init_state()
    plan, (q, k, v), output = cases.run(method, 6, LAYOUT, frozen=True, state=state)[-1]
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    error = (output.out - dense).norm(dim=-1).view(1, 2, 15, 16).mean(-1)
    longest = v.norm(dim=-1).amax(-1)[..., None]
    bound = 2 * state.tiles.skipped.clamp(max=1) * longest
    assert float(plan.density()) < 0.9
    assert bool((error <= bound + 1e-5).all())
    assert float(error.max()) > 1e-3
    assert float(plan.error_bound) == pytest.approx(float(bound.mean() / longest.mean()), rel=0.1)
    if options["criterion"] == "running_mass" and "threshold" in options:
        assert float(state.tiles.skipped.max()) <= options["threshold"]


def test_worst_case_of_a_tile_below_the_running_maximum_is_what_its_keys_can_hold(cases):
    # L8: 16 keys at most 2^-5 of the largest weight each.
    layout = VideoLayout(1, 8, 8)
    q, k, v = torch.zeros(1, 1, 64, 4), torch.zeros(1, 1, 64, 4), torch.zeros(1, 1, 64, 4)
    q[..., 0], k[:, :, :16, 0] = 2.0, 5 * math.log(2)  # 5 doublings at scale 1 / 2
    method = Lite(criterion="running_max", threshold=-4.9, blocks=(64, 16))
    state = method.init_state()
    plan = method.plan(q, k, v, layout, cases.site(), state)
    stats = run_plan(q, k, v, plan).block_stats
    torch.testing.assert_close(stats[0, 0, 0], torch.tensor([0.0, -5, -5, -5]))
    scales = tile_scales("running_max", stats, state.tiles.geometry(), None)
    weight, held = tile_weights(stats, scales)
    assert weight is stats
    torch.testing.assert_close(held[0, 0, 0], torch.tensor([1.0, 0.5, 0.5, 0.5]))


def test_text_tiles_are_those_of_the_original_must_do_list(cases):
    # L6: text at 0..127 and 500..639.
    layout = VideoLayout(1, 12, 31, text_before=128, text_after=140)
    q = torch.zeros(1, 1, 640, 1)
    for block_kv, expected in ((128, [0, 3, 4]), (176, [0, 2, 3])):
        method = Lite(threshold=0.1, blocks=(64, block_kv))
        state = method.init_state()
        method.plan(q, q, q, layout, cases.site(), state)
        tiles = state.tiles
        middle = tiles.geometry().forced[3]  # queries 192 to 255 hold no text
        own = {192 // block_kv, 255 // block_kv}
        assert set(numbers(middle)) - own == set(expected) - own
        assert bool(tiles.geometry().forced[0].all())
