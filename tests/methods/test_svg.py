"""SVG, case by case of the research's section 5 (svg.md).

Layout L1 L2 L3: tests/test_layout.py (pixel-major order, text in place, one frame or pixel). L4:
orders_leave_spatial_heads. M1: published_width, names_the_least. M2 M3:
published_tiny_masks, true_first_frame. M4 M5: text_masks (M4's padding row:
tests/test_attention.py, padding_rows_see_only_padding). M6: band_of_whole_blocks. M7 M8 M10:
720p_executes. M9 P6: profiled_rows. P1: everything_kept. P2: pure_heads. P3: forced_heads. P4:
rows_cover. P5: text_rows. P7: batch_rows, branches_and_generations. P8: padding_text.
W1 W2: tests/test_schedule.py. W3 W4 W5 W7: tests/test_api.py, tests/pipelines/test_attach.py. W6:
tests/pipelines/test_tracker.py, test_wan.py. W8 W9 concern no method.
"""

import math

import pytest
import torch

from vidsparse.attention import SparseAttention, run_plan
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.methods.svg import SVG, WatchedSVG, profile_errors, sample_rows
from vidsparse.methods.svg_masks import head_masks
from vidsparse.schedule import DenseSchedule

LAYOUT = VideoLayout(8, 6, 8, text_before=3, text_after=10)
SMALL = (16, 16)


def plan_of(method, tensors, layout, cases, **where):
    return method.plan(*tensors, layout, cases.site(**where), method.init_state())


@pytest.mark.parametrize("heads", ["spatial", "temporal"])
@pytest.mark.parametrize("sink", ["frame", "positions", "none"])
@pytest.mark.parametrize("blocks", [(16, 16), (32, 16), (16, 32)])
def test_forced_heads_attend_under_their_mask(heads, sink, blocks, cases):
    # P3: the reordered call equals attention with the mask in natural order, without a reorder.
    S = LAYOUT.num_tokens
    tensors = cases.qkv(0, 2, 2, S, 16)
    method = SVG(0.5, heads=heads, sink=sink, blocks=blocks)
    plan = plan_of(method, tensors, LAYOUT, cases)
    keep = cases.natural_mask(plan, 2, 2)
    density = float(keep.float().mean())
    assert 0.5 - 1e-6 <= density < 0.5 + blocks[0] * blocks[1] / S**2
    assert float(plan.density()) == pytest.approx(density, abs=1e-6)
    text = torch.ones(S, dtype=torch.bool)
    text[3 : LAYOUT.video_end] = False
    assert bool(keep[..., text].all())
    assert bool(keep[..., text, :].all())
    if sink == "frame":
        assert bool(keep[..., 3:51].all())
    assert bool(keep.diagonal(dim1=-2, dim2=-1).all())
    expected = cases.masked_attention(*tensors, keep)
    out = run_plan(*tensors, plan).out.double()
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_orders_leave_spatial_heads_and_text_in_place(cases):
    # L4.
    tensors = cases.qkv(1, 1, 8, LAYOUT.num_tokens, 16)
    plan = plan_of(SVG(0.5, blocks=SMALL), tensors, LAYOUT, cases)
    natural = torch.arange(LAYOUT.num_tokens)
    moved = (plan.q_order != natural).any(-1)
    assert torch.equal(moved, plan.moved_heads)
    assert 0 < int(moved.sum()) < 8
    for order in (plan.q_order, plan.kv_order):
        assert bool((order.sort(-1).values == natural).all())
        assert bool((order[..., :3] == natural[:3]).all())
        assert bool((order[..., LAYOUT.video_end :] == natural[LAYOUT.video_end :]).all())


def test_matches_the_published_tiny_masks():
    # M2 and M3: F=3, N=4, |q - k| <= 2 or k < 4; 85 of 144 pairs.
    layout = VideoLayout(3, 2, 2)
    masks = head_masks(layout, (1, 1), 85 / 144, "positions", torch.device("cpu"))
    spatial = (
        "111100000000 111100000000 111110000000 111111000000 111111100000 111111110000 "
        "111111111000 111101111100 111100111110 111100011111 111100001111 111100000111"
    )
    temporal = (
        "110010001000 110011001100 111011101110 110110111011 110010001000 111011001100 "
        "111110101110 110110011011 110011001000 111011101100 111110111010 110110011001"
    )
    rows = masks.rows(torch.arange(12)).int()
    for kind, expected in enumerate((spatial, temporal)):
        assert ["".join(map(str, row.tolist())) for row in rows[kind]] == expected.split()


def test_keeps_the_true_first_frame_in_pixel_major_order():
    # M3 with the sink meant by the paper: frame-major columns 0..3 of every row.
    layout = VideoLayout(3, 2, 2)
    masks = head_masks(layout, (1, 1), 85 / 144, "frame", torch.device("cpu"))
    rows = masks.rows(torch.arange(12))
    assert bool(rows[..., :4].all())
    assert rows.sum((1, 2)).tolist() == [85, 85]
    near = rows[1, :, 4:].float()
    pixel = torch.arange(12) % 4
    apart = (pixel[:, None] - pixel[4:]).abs()
    assert bool((near[apart == 0] == 1).all())
    assert bool((near[apart == 3] == 0).all())


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        # M4 without its padding row, which SparseAttention cuts off; W = 2.
        (
            VideoLayout(2, 1, 3, text_after=2),
            "11000011 11100011 01110011 00111011 00011111 00001111 11111111 11111111",
        ),
        # M5: text first.
        (
            VideoLayout(2, 1, 3, text_before=2),
            "11111111 11111111 11110000 11111000 11011100 11001110 11000111 11000011",
        ),
    ],
)
def test_text_masks_match_the_published_ones(layout, rows):
    masks = head_masks(layout, (1, 1), 44 / 64, "none", torch.device("cpu"))
    got = ["".join(map(str, row.int().tolist())) for row in masks.kept[0]]
    assert got == rows.split()


@pytest.mark.parametrize(
    ("density", "layout", "width_frames"),
    # M1; the published widths, which count text but no sink.
    [
        (0.36, VideoLayout(10, 10, 10), 2.0),
        (0.25, VideoLayout(21, 45, 80), 2.8134665205267897),
        (0.30, VideoLayout(21, 45, 80), 3.430139),
        (0.25, VideoLayout(33, 45, 80, text_after=256), 4.348694),
        (0.20, VideoLayout(33, 45, 80, text_after=256), 3.412012),
        (0.25, VideoLayout(11, 48, 85, text_before=226), 1.417393),
    ],
)
def test_band_has_the_published_width(density, layout, width_frames):
    block = 128 if layout.num_tokens > 2000 else 10
    masks = head_masks(layout, (block, block), density, "none", torch.device("cpu"))
    middle = masks.kept[0, masks.kept.shape[1] // 2]
    video = middle[math.ceil(layout.text_before / block) : layout.video_end // block]
    half = int(video.sum()) / 2 * block
    assert abs(half - width_frames * layout.tokens_per_frame) <= block


@pytest.mark.parametrize(("m", "blocks"), [(1, 28), (2, 44), (3, 58)])
def test_band_of_whole_blocks_has_the_published_count(m, blocks):
    # M6: of 10 x 10 blocks those within m of the diagonal; ours has no partial ones.
    layout = VideoLayout(10, 8, 16)
    masks = head_masks(layout, (128, 128), blocks / 100, "none", torch.device("cpu"))
    ids = torch.arange(10)
    for kind in (0, 1):
        assert torch.equal(masks.kept[kind], (ids[:, None] - ids).abs() <= m)


@pytest.mark.parametrize("sink", ["frame", "none"])
def test_720p_executes_the_density_asked_for(sink):
    # M7 and M10: the original executes 0.3425 for 0.30; 75600 is no multiple of 128.
    layout = VideoLayout(21, 45, 80)
    masks = head_masks(layout, (128, 128), 0.3, sink, torch.device("cpu"))
    for kind in (0, 1):
        realised = float(masks.block_mask(torch.tensor([[bool(kind)]])).density())
        assert 0.3 - 1e-7 <= realised <= 0.3 + 128**2 / 75600**2
    assert int(masks.counts.min()) >= 1
    # M8: symmetric but for the sink and the pair that the budget cuts apart.
    free = masks.kept[0, 29:, 29:]
    assert int((free != free.T).sum()) <= 2


@pytest.mark.parametrize("sink", ["frame", "positions", "none"])
@pytest.mark.parametrize("blocks", [(16, 16), (32, 16)])
def test_profiled_rows_are_those_of_the_executed_mask(sink, blocks, cases):
    # M9 and P6.
    S = LAYOUT.num_tokens
    tensors = cases.qkv(2, 1, 1, S, 16)
    masks = head_masks(LAYOUT, blocks, 0.5, sink, torch.device("cpu"))
    rows = masks.rows(torch.arange(S))
    for kind, heads in enumerate(("spatial", "temporal")):
        method = SVG(0.5, heads=heads, sink=sink, blocks=blocks)
        keep = cases.natural_mask(plan_of(method, tensors, LAYOUT, cases), 1, 1)
        assert torch.equal(rows[kind], keep[0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errors_are_those_of_full_masked_attention(dtype, cases):
    q, k, v = cases.qkv(3, 2, 3, LAYOUT.num_tokens, 16, dtype)
    masks = head_masks(LAYOUT, SMALL, 0.4, "frame", torch.device("cpu"))
    rows = torch.tensor([0, 1, 40, 100, 251, 396])
    errors = profile_errors(q, k, v, masks, rows)
    full = cases.masked_attention(q, k, v, torch.ones(1, dtype=torch.bool))[:, :, rows]
    keep = masks.rows(rows)
    for kind in (0, 1):
        sparse = cases.masked_attention(q[:, :, rows], k, v, keep[kind])
        expected = (sparse - full).square().mean((-1, -2)).float()
        exact = dtype is torch.float32
        torch.testing.assert_close(
            errors[kind], expected, rtol=1e-4 if exact else 0.05, atol=1e-9 if exact else 1e-4
        )


def structured(layout, kinds, seed, axis_scale=6.0, D=32):
    """Heads that attend within a frame (False) or to one pixel over time (True)."""
    generator = torch.Generator().manual_seed(seed)
    S, N = layout.num_tokens, layout.tokens_per_frame
    token = torch.arange(layout.video_tokens)
    q, k = torch.zeros(1, len(kinds), S, D), torch.zeros(1, len(kinds), S, D)
    for h, temporal in enumerate(kinds):
        group = token % N if temporal else token // N
        codes = torch.nn.functional.normalize(
            torch.randn(int(group.max()) + 1, D, generator=generator), dim=-1
        )
        video = slice(layout.text_before, layout.video_end)
        q[0, h, video] = k[0, h, video] = axis_scale * codes[group]
    return q, k, torch.randn(1, len(kinds), S, D, generator=generator)


@pytest.mark.parametrize("layout", [VideoLayout(8, 8, 8), LAYOUT, VideoLayout(12, 5, 9, 0, 20)])
@pytest.mark.parametrize("decide_every", [0, 1, 5])
def test_pure_heads_are_all_classified_right(layout, decide_every, cases):
    # P2.
    generator = torch.Generator().manual_seed(7)
    for seed in range(6):
        kinds = torch.rand(16, generator=generator) < 0.5
        tensors = structured(layout, kinds.tolist(), seed, axis_scale=10.0)
        method = SVG(0.4, blocks=SMALL, decide_every=decide_every, sink="none")
        plan = plan_of(method, tensors, layout, cases, step=seed)
        assert torch.equal(plan.moved_heads[0], kinds)


def test_everything_kept_is_dense_and_ties_are_spatial(cases):
    # P1.
    tensors = cases.qkv(4, 1, 4, LAYOUT.num_tokens, 16)
    assert plan_of(SVG(1.0), tensors, LAYOUT, cases) is None
    method = SVG(0.9999, blocks=SMALL)
    state = method.init_state()
    plan = method.plan(*tensors, LAYOUT, cases.site(), state)
    assert not bool(state.errors.any())
    assert not bool(plan.moved_heads.any())
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors)
    torch.testing.assert_close(run_plan(*tensors, plan).out, expected, atol=1e-5, rtol=1e-5)


def test_rows_cover_every_frame_and_leave_the_global_generator_alone(cases):
    # P4.
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    for S in (64, 65, 1000, 75600):
        rows = sample_rows(64, S, generator)
        assert int(rows.min()) >= 0
        assert int(rows.max()) < S
        assert bool((rows.diff() >= 0).all())
    frames = {int(r) // 3600 for _ in range(32) for r in sample_rows(64, 75600, generator)}
    assert frames == set(range(21))
    tensors = cases.qkv(5, 1, 4, LAYOUT.num_tokens, 16)
    method = SVG(0.5, blocks=SMALL)
    errors = []
    for step in (5, 5, 6):
        state = method.init_state()
        method.plan(*tensors, LAYOUT, cases.site(step=step), state)
        errors.append(state.errors)
    assert torch.equal(errors[0], errors[1])
    assert not torch.equal(errors[0], errors[2])
    assert torch.equal(before, torch.get_rng_state())


def test_text_rows_give_no_error(cases):
    # P5: the original yields NaN for a sampled text row.
    q, k, v = cases.qkv(6, 1, 2, LAYOUT.num_tokens, 16)
    masks = head_masks(LAYOUT, SMALL, 0.4, "none", torch.device("cpu"))
    errors = profile_errors(q, k, v, masks, torch.tensor([0, LAYOUT.num_tokens - 1]))
    assert float(errors.abs().max()) < 1e-12
    peaked = profile_errors(1e4 * q, k, v, masks, torch.arange(LAYOUT.num_tokens))
    assert bool(peaked.isfinite().all())


def test_batch_rows_decide_alone(cases):
    # P7.
    tensors = cases.qkv(7, 2, 6, LAYOUT.num_tokens, 16)
    method = SVG(0.5, blocks=SMALL)
    both = plan_of(method, tensors, LAYOUT, cases)
    for row in (0, 1):
        alone = plan_of(method, [x[row : row + 1] for x in tensors], LAYOUT, cases)
        assert torch.equal(alone.moved_heads[0], both.moved_heads[row])
        assert torch.equal(alone.mask.kv_indices[0], both.mask.kv_indices[row])


def test_branches_and_generations_decide_alone(cases):
    # P7 and W4: a head type kept for good is that of the branch and video it was found in.
    spatial = structured(LAYOUT, [False] * 4, seed=1, axis_scale=10.0)
    temporal = structured(LAYOUT, [True] * 4, seed=2, axis_scale=10.0)
    method = WatchedSVG(0.4, blocks=SMALL, decide_every=0, sink="none")
    attend = SparseAttention(method, DenseSchedule(dense_steps=0))
    calls = [(spatial, {}), (temporal, {"branch": 1}), (spatial, {"branch": 1, "step": 6})]
    calls.append((temporal, {"generation": 1}))
    for tensors, where in calls:
        attend(*tensors, layout=LAYOUT, site=cases.site(**where))
    found = [bool(heads.all()) for _, heads in method.decisions]
    assert found == [False, True, True, True]
    assert not bool(method.decisions[0][1].any())


def test_padding_text_reaches_no_real_token(cases):
    # P8.
    layout = VideoLayout(6, 6, 8, text_after=12, text_valid=(5,))
    S, end = layout.num_tokens, layout.video_end + 5
    q, k, v = cases.qkv(8, 1, 4, S, 16)
    attend = SparseAttention(SVG(0.5, blocks=SMALL), DenseSchedule(dense_steps=0))
    before = attend(q, k, v, layout=layout, site=cases.site())
    k[:, :, end:] += 100
    v[:, :, end:] -= 100
    after = attend(q, k, v, layout=layout, site=cases.site(generation=1))
    assert torch.equal(before[:, :, :end], after[:, :, :end])


@pytest.mark.parametrize(("every", "decided"), [(1, [0, 1, 2, 3, 5, 9]), (3, [0, 3, 9]), (0, [0])])
def test_decisions_are_kept_for_as_many_steps_as_asked(every, decided, cases):
    tensors = cases.qkv(9, 1, 4, LAYOUT.num_tokens, 16)
    method = SVG(0.5, blocks=SMALL, decide_every=every)
    state, taken, last = method.init_state(), [], None
    for step in (0, 1, 2, 3, 5, 9):
        method.plan(*tensors, LAYOUT, cases.site(step=step), state)
        if state.errors is not last:
            taken.append(step)
        last = state.errors
    assert taken == decided


def test_watched_svg_keeps_every_decision(cases):
    tensors = cases.qkv(11, 2, 4, LAYOUT.num_tokens, 16)
    watched, plain = WatchedSVG(0.5, blocks=SMALL), SVG(0.5, blocks=SMALL)
    state = watched.init_state()
    for step in (3, 4):
        watched.plan(*tensors, LAYOUT, cases.site(step=step), state)
    assert [where.step for where, _ in watched.decisions] == [3, 4]
    for where, temporal in watched.decisions:
        plan = plan_of(plain, tensors, LAYOUT, cases, step=where.step)
        assert torch.equal(temporal, plan.moved_heads)
    forced = WatchedSVG(0.5, blocks=SMALL, heads="temporal")
    plan_of(forced, tensors, LAYOUT, cases)
    assert forced.decisions[0][1].shape == (2, 4)


def test_one_frame_runs_as_spatial_and_says_so(cases, caplog):
    layout = VideoLayout(1, 16, 16, text_after=3)
    tensors = cases.qkv(12, 1, 2, layout.num_tokens, 16)
    plan = plan_of(SVG(0.5, blocks=SMALL), tensors, layout, cases)
    assert "one frame" in caplog.text
    assert plan.q_order is None
    assert 0.5 <= float(plan.density()) < 0.51


def test_a_density_below_text_and_first_frame_names_the_least(cases):
    tensors = cases.qkv(13, 1, 1, LAYOUT.num_tokens, 16)
    with pytest.raises(UsageError, match=r"use a density of at least 0\.(\d+)") as error:
        plan_of(SVG(0.1, blocks=SMALL), tensors, LAYOUT, cases)
    least = float(str(error.value).split()[-1])
    assert plan_of(SVG(least, blocks=SMALL), tensors, LAYOUT, cases) is not None


@pytest.mark.parametrize(
    "wrong",
    [{"rows": 0}, {"decide_every": -1}, {"heads": "both"}, {"sink": "kitchen"}, {"density": 0}],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(UsageError, match=r"must|use one of"):
        SVG(**wrong)


def test_more_rows_than_tokens_are_refused(cases):
    tensors = cases.qkv(14, 1, 1, LAYOUT.num_tokens, 16)
    with pytest.raises(UsageError, match="rows=1000 exceeds the 397 tokens"):
        plan_of(SVG(0.5, rows=1000, blocks=SMALL), tensors, LAYOUT, cases)


def test_search_space_names_parameters():
    for name, choices in SVG().search_space().items():
        for value in choices.values:
            SVG(**{name: value})
