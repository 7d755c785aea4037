import math
from dataclasses import replace

import pytest
import torch

from vidsparse.attention import SparseAttention, run_plan
from vidsparse.errors import UsageError
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.layout import VideoLayout
from vidsparse.methods.block_error import (
    block_moments,
    estimated_scores,
    tangents,
)
from vidsparse.methods.compensated import Compensated
from vidsparse.methods.windows import choose_frames
from vidsparse.plan import CallSite
from vidsparse.profiling.synthetic import video_qkv
from vidsparse.schedule import DenseSchedule

CPU = torch.device("cpu")
SMALL = (16, 8)
GRIDS = [
    VideoLayout(3, 7, 10),
    VideoLayout(5, 5, 11, text_before=7),
    VideoLayout(4, 6, 8, text_after=9),
    VideoLayout(1, 9, 13, text_before=3, text_after=4),
]


def plan_of(method, tensors, layout, cases, **where):
    return method.decide(*tensors, layout, cases.site(**where), method.init_state())


def relative_error(tensors, plan):
    exact = torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in tensors))
    return float((run_plan(*tensors, plan).out.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("layout", GRIDS)
@pytest.mark.parametrize("budget", ["flat", "row", "top_p"])
def test_density_is_met_and_text_and_own_blocks_stay(layout, budget, cases):
    tensors = cases.qkv(1, 2, 2, layout.num_tokens, 16)
    method = Compensated(0.5, budget=budget, p=0.4, blocks=SMALL, first_layer=1)
    plan = plan_of(method, tensors, layout, cases)
    keep = cases.natural_mask(plan, 2, 2)
    text = torch.ones(layout.num_tokens, dtype=torch.bool)
    text[layout.text_before : layout.video_end] = False
    assert bool(keep[..., text].all())
    assert bool(keep[..., text, :].all())
    assert bool(keep.diagonal(dim1=-2, dim2=-1).all())
    assert float(plan.density()) == pytest.approx(float(keep.float().mean()), abs=1e-6)
    if budget == "flat":
        density = keep.float().mean((-1, -2))
        assert bool((density >= 0.5 - 1e-6).all())
        assert bool((density < 0.5 + 16 * 8 / layout.num_tokens**2).all())


@pytest.mark.parametrize("layout", GRIDS)
@pytest.mark.parametrize("exact_at_tangents", [False, True])
def test_output_is_kept_keys_and_weighted_means(layout, exact_at_tangents, cases):
    q, k, v = cases.qkv(2, 1, 2, layout.num_tokens, 16)
    method = Compensated(0.5, blocks=SMALL, tangents=exact_at_tangents)
    plan = plan_of(method, (q, k, v), layout, cases)
    assert (plan.tangents is not None) == exact_at_tangents
    out = run_plan(q, k, v, plan).out
    order = plan.q_order[0, 0].long()
    kept = plan.mask.to_dense()
    for h in range(2):
        keys, values = (x[0, h, order].double().split(8) for x in (k, v))
        for i, rows in enumerate(order.split(16)):
            logits, means = [], []
            for j, (key, value) in enumerate(zip(keys, values, strict=True)):
                each = q[0, h, rows].double() @ key.T / 4
                if not bool(kept[0, h, i, j]):
                    t = torch.zeros(16).double()
                    t = plan.tangents[0, h, j].double() if exact_at_tangents else t
                    weights = torch.softmax(key @ t / 4, 0)
                    mean = weights @ key
                    bias = torch.logsumexp(key @ t / 4, 0) - mean @ t / 4
                    each = (q[0, h, rows].double() @ mean / 4 + bias)[:, None]
                    value = (weights @ value)[None]
                logits.append(each)
                means.append(value)
            expected = torch.softmax(torch.cat(logits, 1), -1) @ torch.cat(means)
            torch.testing.assert_close(out[0, h, rows].double(), expected, atol=1e-5, rtol=1e-4)


def test_a_dense_first_layer_costs_the_others_nothing(cases):
    method = Compensated(0.3)
    site = CallSite("transformer", 1, 8, 0, 10, 0.5, 0, 0)
    assert method._density_at(replace(site, layer=0), 0.0) == 0.6
    assert method._density_at(site, 0.0) < 0.3
    assert method._density_at(replace(site, first_sparse_layer=1), 0.0) == 0.3


def test_scores_equal_a_slow_reference(cases):
    layout = VideoLayout(3, 7, 10, text_after=5)
    q, k, v = cases.qkv(3, 1, 2, layout.num_tokens, 16)
    geometry = Compensated(0.5, blocks=(32, 8)).geometry(layout, CPU)
    moments = block_moments(q, k, v, geometry)
    order = geometry.q.order.long()
    assert all(
        torch.equal(x, y[:, :, order]) for x, y in zip(moments.tokens, (q, k, v), strict=True)
    )
    mass, error = (x[0, 1] for x in estimated_scores(moments, geometry))
    keys, values = (x[0, 1, order].split(8) for x in (k, v))
    rows = q[0, 1, order].split(32)
    centre = torch.stack([block.mean(0) for block in rows]).mean(0)
    samples = q[0, 1, moments.samples].split(16)
    spreads = torch.stack([value.var(0, correction=0).sum().sqrt() for value in values])
    for i, block in enumerate(rows):
        pools = samples[i]
        # One query of each sixteenth of a block.
        for n, pool in enumerate(pools):
            part = block[2 * n : 2 * n + 2] if len(block) == 32 else rows[-1]
            assert bool((part == pool).all(-1).any())
        logits = [[pool @ key.mean(0) / 4 + math.log(len(key)) for key in keys] for pool in pools]
        weights = torch.softmax(torch.tensor(logits), -1)
        torch.testing.assert_close(mass[i], weights.mean(0), atol=1e-5, rtol=1e-4)
        away = torch.stack([(pool - centre).square() / 16 for pool in pools])
        variances = torch.stack([key.var(0, correction=0) for key in keys])
        wanted = (weights * (away @ variances.T)).mean(0) * spreads / spreads.mean()
        torch.testing.assert_close(error[i], wanted, atol=1e-5, rtol=1e-3)


def test_tangents_are_the_mean_of_the_queries_that_look(cases):
    weights = torch.tensor([[1.0, 0.0], [3.0, 0.0]])[None, None]
    means = torch.tensor([[0.0, 4.0], [8.0, 0.0]])[None, None]
    assert tangents(weights, means).tolist() == [[[[6.0, 1.0], [0.0, 0.0]]]]


def test_blocks_of_equal_tokens_cost_nothing_at_any_density(cases):
    # Keys and values constant within each key block: compensation is exact.
    layout = VideoLayout(4, 8, 8)
    q, k, v = cases.qkv(4, 1, 2, 256, 16)
    method = Compensated(0.2, blocks=(16, 8))
    order = method.geometry(layout, CPU).kv.order.long()
    for x in (k, v):
        blocks = x[:, :, order].view(1, 2, 32, 8, 16)
        x[:, :, order] = blocks[..., :1, :].expand(blocks.shape).reshape(1, 2, 256, 16)
    plan = plan_of(method, (q, k, v), layout, cases)
    assert relative_error((q, k, v), plan) < 1e-5


def test_one_query_for_all_blocks_costs_nothing(cases):
    # The tangent of every block is that query, and there compensation is exact for any keys.
    layout = VideoLayout(4, 8, 8)
    q, k, v = cases.qkv(5, 1, 2, 256, 16)
    q = q[:, :, :1].expand_as(q).contiguous()
    exact, plain = (
        relative_error(
            (q, k, v), plan_of(Compensated(0.2, blocks=SMALL, tangents=t), (q, k, v), layout, cases)
        )
        for t in (True, False)
    )
    assert exact < 1e-5
    assert plain > 0.01


def test_error_ranking_and_tangents_lower_the_error(cases):
    layout = VideoLayout(8, 12, 16)
    tensors = video_qkv(layout, 1, 4, 32, CPU, torch.float32)
    errors = {}
    for rank, exact, compensate in (
        ("error", True, True),
        ("error", False, True),
        ("mass", False, True),
        ("mass", False, False),
    ):
        method = Compensated(
            0.15, rank=rank, tangents=exact, compensate=compensate, blocks=(32, 16)
        )
        plan = plan_of(method, tensors, layout, cases)
        errors[rank, exact, compensate] = relative_error(tensors, plan)
    ordered = list(errors.values())
    assert ordered == sorted(ordered), errors


def test_everything_is_dense(cases):
    layout = VideoLayout(3, 5, 7)
    tensors = cases.qkv(7, 1, 2, layout.num_tokens, 16)
    assert plan_of(Compensated(1.0), tensors, layout, cases) is None
    every = plan_of(Compensated(budget="top_p", p=1.0, blocks=SMALL), tensors, layout, cases)
    assert relative_error(tensors, every) < 1e-5


def test_constant_tokens_give_no_nan(cases):
    layout = VideoLayout(4, 8, 8)
    q, k, v = (torch.zeros_like(x) for x in cases.qkv(8, 1, 2, 256, 16))
    for budget in ("flat", "top_p"):
        plan = plan_of(Compensated(0.3, budget=budget, blocks=SMALL), (q, k, v), layout, cases)
        assert bool(run_plan(q, k, v, plan).out.isfinite().all())


def test_planning_keeps_no_state(cases):
    layout = VideoLayout(3, 7, 9)
    tensors = cases.qkv(10, 1, 2, layout.num_tokens, 16)
    method = Compensated(0.4, blocks=SMALL)
    assert method.init_state() is None
    a, b = (plan_of(method, tensors, layout, cases, step=s) for s in (1, 7))
    assert torch.equal(a.mask.to_dense(), b.mask.to_dense())
    assert torch.equal(a.tangents, b.tangents)


@pytest.mark.parametrize(
    ("layout", "block", "frames"),
    [
        (VideoLayout(21, 45, 80), 128, 5),
        (VideoLayout(9, 16, 16), 64, 4),
        (VideoLayout(1, 16, 16), 64, 1),
        (VideoLayout(2, 30, 52), 128, 2),
    ],
)
def test_blocks_suit_the_kernels_and_are_about_as_deep_as_wide(layout, block, frames):
    assert choose_frames(layout.frames, block) == frames
    geometry = Compensated(blocks=(block, block // 2)).geometry(layout, CPU)
    mask = geometry.plan(geometry.forced[None, None]).mask
    assert isinstance(mask, BlockMask)
    assert (mask.block_q, mask.block_kv) == (block, block // 2)
    order = geometry.q.order.long()
    assert torch.equal(order.sort().values, torch.arange(layout.num_tokens))
    for tokens in order.split(block)[:-1]:
        f = tokens // layout.tokens_per_frame
        assert int(f.max() - f.min()) < 2 * frames


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0},
        {"budget": "shared"},
        {"budget": "top_p", "p": 1.5},
        {"rank": "luck"},
        {"frames": 0},
        {"blocks": (0, 8)},
        {"compensate": "yes"},
        {"anchor_every": -1},
        {"plan_every": 0},
        {"first_layer": 0.5},
    ],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(UsageError, match=r"must|use one of|use 'error'"):
        Compensated(**wrong)


def test_budgets_below_the_forced_blocks_are_refused(cases):
    layout = VideoLayout(2, 9, 13, text_after=60)
    tensors = cases.qkv(12, 1, 1, layout.num_tokens, 16)
    with pytest.raises(UsageError, match=r"density=0\.1 is too small here"):
        plan_of(Compensated(0.1), tensors, layout, cases)


def test_search_space_names_parameters():
    for name, choices in Compensated().search_space().items():
        for value in choices.values:
            Compensated(**{name: value})


def anchored_calls(cases, steps, **parameters):
    """Outputs and exact outputs of calls whose tokens drift a little from step to step."""
    layout = VideoLayout(8, 12, 16)
    start = video_qkv(layout, 1, 2, 32, CPU, torch.float32)
    drift = cases.qkv(20, 1, 2, layout.num_tokens, 32)
    attention = SparseAttention(
        Compensated(0.15, blocks=(32, 16), **parameters), DenseSchedule(dense_steps=0)
    )
    results = []
    for step in steps:
        q, k, v = (x + 0.01 * step * y for x, y in zip(start, drift, strict=True))
        out = attention(q, k, v, layout=layout, site=cases.site(step=step))
        exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        results.append(float((out - exact).norm() / exact.norm()))
    return results, attention


def test_anchors_are_dense_and_lower_the_error_of_the_steps_after(cases):
    steps = [0, 1, 2, 3, 4, 5]
    plain, _ = anchored_calls(cases, steps)
    errors, attention = anchored_calls(cases, steps, anchor_every=3)
    assert errors[0] < 1e-6
    assert errors[3] < 1e-6
    for step in (1, 2, 4, 5):
        assert errors[step] < 0.3 * plain[step]
    assert errors[1] < errors[2]
    assert attention.recorder.dense["anchor"] == 2
    assert attention.state_bytes() >= 8 * 12 * 16 * 2 * 32


def test_skipped_steps_do_not_confuse_anchors(cases):
    errors, _ = anchored_calls(cases, [0, 2, 7], anchor_every=4)
    assert errors[0] < 1e-6
    assert errors[1] > 1e-6
    assert errors[2] < 1e-6


def test_anchors_are_a_phase_of_a_run():
    assert Compensated().phases(20, 4) == ()
    anchor, between = Compensated(anchor_every=6).phases(20, 4)
    assert anchor.steps == (4, 10, 16)
    assert sorted((*anchor.steps, *between.steps)) == list(range(4, 20))


def test_blocks_of_an_earlier_step_serve_nearly_as_well(cases):
    steps = [0, 1, 2, 3]
    fresh, _ = anchored_calls(cases, steps)
    kept, attention = anchored_calls(cases, steps, plan_every=3)
    assert kept[0] == fresh[0]
    assert kept[3] == pytest.approx(fresh[3], rel=1e-5)
    for step in (1, 2):
        assert kept[step] == pytest.approx(fresh[step], rel=0.2)
        assert kept[step] != fresh[step]
    assert not attention.recorder.dense
    # Bits of the mask and tangents, nothing per token.
    assert attention.state_bytes() <= 2 * (48 * 12 + 96 * 32 * 4)


def test_the_first_layer_keeps_more_and_the_mean_stays(cases):
    layout = VideoLayout(8, 12, 16)
    tensors = cases.qkv(21, 1, 2, layout.num_tokens, 16)
    method = Compensated(0.25, first_layer=2.0, blocks=(32, 16))
    plans = [plan_of(method, tensors, layout, cases, layer=layer) for layer in range(8)]
    densities = [float(plan.density()) for plan in plans]
    assert densities[0] == pytest.approx(0.5, abs=1e-3)
    assert sum(densities) / 8 == pytest.approx(0.25, abs=1e-3)
    # Not where the other layers would be left with next to nothing.
    little = Compensated(0.25, first_layer=7.0, blocks=(32, 16))
    assert float(plan_of(little, tensors, layout, cases).density()) == pytest.approx(0.25, abs=1e-3)
