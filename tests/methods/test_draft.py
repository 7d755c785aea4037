"""DraftAttention, case by case of the research (draft_lite_adaspa.md 5.1, 5.2).

D1 D1b D2 D3 T1 T2: test_blocks.py (published cases, strips, fill, exact windows). D4 D5 D6:
test_budget.py. D7 D9: pooled_logit. D8: tests/test_attention.py, permuted_full_mask_is_dense.
D10: unequal_windows. G1: published_gates. Invariants: text in place and bijection:
tests/test_layout.py, strip_blocks; density 1: everything_is_dense; constant q or k: exact_count;
heads: heads_choose; forced blocks and realised density: output_is_attention; nested masks:
test_budget.py.
"""

import numpy as np
import pytest
import torch

from vidsparse.attention import run_plan
from vidsparse.errors import UsageError
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.layout import VideoLayout
from vidsparse.methods.blocks import tile_geometry
from vidsparse.methods.clusters import log_cluster_mass
from vidsparse.methods.draft import Draft, draft_map
from vidsparse.schedule import DenseSchedule

CPU = torch.device("cpu")
GRIDS = [
    VideoLayout(3, 7, 10),
    VideoLayout(2, 5, 11, text_before=7),
    VideoLayout(4, 6, 8, text_after=9),
    VideoLayout(1, 9, 13, text_before=3, text_after=4),
]


def plan_of(method, tensors, layout, cases, **where):
    return method.plan(*tensors, layout, cases.site(**where), method.init_state())


def blocks_of(plan, S):
    """Natural token indices of each block, from the plan alone."""
    order = torch.arange(S) if plan.q_order is None else plan.q_order[0, 0].long()
    mask = plan.mask
    if isinstance(mask, BlockMask):
        return order.split(mask.block_q)
    return order.split(mask.q_offsets[0, 0].diff().tolist())


def slow_map(q, k, blocks, second_moment=False):
    """The draft map from the logits of all token pairs, in NumPy."""
    q, k, D = q.double().numpy(), k.double().numpy(), q.shape[-1]
    scores = np.zeros((len(blocks), len(blocks)))
    for i, rows in enumerate(blocks):
        for j, keys in enumerate(blocks):
            scores[i, j] = (q[rows] @ k[keys].T).mean() / np.sqrt(D) + np.log(len(keys))
            if second_moment:
                squares = (q[rows] ** 2).mean(0) * (k[keys] ** 2).mean(0)
                means = q[rows].mean(0) ** 2 * k[keys].mean(0) ** 2
                scores[i, j] += max(0, (squares - means).sum() / D) / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def slow_flat(scores, sizes, forced, density):
    """Greedy choice by score until the request is reached."""
    ranked = sorted(np.ndindex(scores.shape), key=lambda c: -np.inf if forced[c] else -scores[c])
    kept, held = np.zeros(scores.shape, bool), 0
    for i, j in ranked:
        if held >= density * sum(sizes) ** 2 - 1e-6:
            break
        kept[i, j] = True
        held += sizes[i] * sizes[j]
    return kept


@pytest.mark.parametrize("layout", GRIDS)
@pytest.mark.parametrize("tiling", ["windows", "strips"])
@pytest.mark.parametrize("second_moment", [False, True])
def test_plan_equals_a_slow_reference(layout, tiling, second_moment, cases):
    S = layout.num_tokens
    q, k, v = cases.qkv(0, 2, 3, S, 16)
    method = Draft(0.5, tiling=tiling, block=12, second_moment=second_moment)
    plan = plan_of(method, (q, k, v), layout, cases)
    blocks = blocks_of(plan, S)
    text = [bool(((b < layout.text_before) | (b >= layout.video_end)).any()) for b in blocks]
    forced = np.array(text)[:, None] | np.array(text) | np.eye(len(blocks), dtype=bool)
    sizes = [len(b) for b in blocks]
    for b, h in ((0, 0), (1, 2)):
        scores = slow_map(q[b, h], k[b, h], [x.numpy() for x in blocks], second_moment)
        assert np.array_equal(
            plan.mask.to_dense()[b, h].numpy(), slow_flat(scores, sizes, forced, 0.5)
        )


@pytest.mark.parametrize("layout", GRIDS)
@pytest.mark.parametrize("tiling", ["windows", "strips"])
@pytest.mark.parametrize("budget", ["flat", "row", "top_p", "threshold"])
@pytest.mark.parametrize("frames", [1, 2])
def test_output_is_attention_under_the_plans_mask(layout, tiling, budget, frames, cases):
    tensors = cases.qkv(1, 2, 2, layout.num_tokens, 16)
    method = Draft(
        0.5, tiling=tiling, block=12, budget=budget, p=0.6, threshold=0.05, frames=frames
    )
    plan = plan_of(method, tensors, layout, cases)
    keep = cases.natural_mask(plan, 2, 2)
    S = layout.num_tokens
    text = torch.ones(S, dtype=torch.bool)
    text[layout.text_before : layout.video_end] = False
    assert bool(keep[..., text].all())
    assert bool(keep[..., text, :].all())
    assert bool(keep.diagonal(dim1=-2, dim2=-1).all())
    assert float(plan.density()) == pytest.approx(float(keep.float().mean()), abs=1e-6)
    if budget == "flat":
        density = keep.float().mean((-1, -2))
        assert bool((density >= 0.5 - 1e-6).all())
        assert bool((density < 0.5 + 144 / S**2).all())
    expected = cases.masked_attention(*tensors, keep)
    out = run_plan(*tensors, plan).out.double()
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_pooled_logit_is_the_mean_logit(cases):
    # draft D7 and D9: the map says the mean exactly, and the logits differ by the largest spread.
    layout = VideoLayout(1, 4, 4)
    geometry = tile_geometry(layout, (1, 2, 2), CPU)
    q, k, _ = cases.qkv(2, 1, 1, 16, 8)
    order = geometry.q.order.long()
    logits = (q @ k.mT)[0, 0][order][:, order] * 8**-0.5
    pooled = logits.view(4, 4, 4, 4).mean((1, 3))
    expected = torch.softmax(pooled, -1)
    torch.testing.assert_close(draft_map(q, k, geometry)[0, 0], expected, atol=1e-6, rtol=1e-5)
    apart = logits - pooled.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert float(apart.norm()) <= 16 * float(apart.abs().max())


def test_unequal_windows_are_weighed_by_their_size():
    # draft D10.
    logits = torch.tensor([0.0, 0.3])
    keys, sizes = logits[None, None, :, None], torch.tensor([[[128, 80]]])
    mass = log_cluster_mass(torch.ones(1, 1, 1, 1), keys, sizes, scale=1.0).exp()
    torch.testing.assert_close(mass[0, 0, 0], torch.tensor([0.542, 0.458]), atol=5e-4, rtol=0)


def test_second_moment_finds_a_block_with_a_few_strong_keys(cases):
    layout = VideoLayout(1, 4, 16)
    geometry = tile_geometry(layout, (1, 4, 4), CPU)
    q, k = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 64, 8)
    q[..., 0] = 4.0
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    k.view(4, 16, 8)[:, 8:12, 0] = 4 * signs[:4]
    plain = draft_map(q, k, geometry)[0, 0]
    spread = draft_map(q, k, geometry, second_moment=True)[0, 0]
    true = torch.softmax(q @ k.mT * 8**-0.5, -1)[0, 0][:, geometry.q.order.long()]
    true = true.view(64, 4, 16).sum(-1)
    torch.testing.assert_close(plain, torch.full((4, 4), 0.25))
    assert int(true[0].argmax()) == 2
    assert bool((spread.argmax(-1) == 2).all())


@pytest.mark.parametrize(
    ("layout", "block", "kind", "count"),
    [
        # 16 x 16 frames of 8 x 8 windows: one kernel block each.
        (VideoLayout(4, 16, 16), 64, BlockMask, 16),
        (VideoLayout(21, 48, 80), 128, BlockMask, 630),
        (VideoLayout(33, 48, 80, text_after=256), 128, BlockMask, 992),
        # 45 x 80 has no window of 128: strips of equal blocks, with no more than needed.
        (VideoLayout(21, 45, 80), 128, BlockMask, 591),
        (VideoLayout(21, 30, 52), 128, BlockMask, 256),
        (VideoLayout(11, 48, 85, text_before=226), 128, BlockMask, 353),
    ],
)
def test_blocks_suit_the_kernels_on_any_grid(layout, block, kind, count):
    geometry = Draft(block=block).geometry(layout, CPU)
    mask = geometry.plan(geometry.forced[None, None]).mask
    assert isinstance(mask, kind)
    assert mask.block_q == mask.block_kv == block
    assert len(geometry.q.sizes) == count


def test_windows_can_be_asked_for_and_given(cases):
    layout = VideoLayout(2, 9, 20)
    tensors = cases.qkv(3, 1, 2, layout.num_tokens, 16)
    chosen = plan_of(Draft(0.5, window=(4, 8)), tensors, layout, cases)
    assert isinstance(chosen.mask, RaggedBlockMask)
    sizes = chosen.mask.q_offsets[0, 0].diff().tolist()
    assert sizes == [32, 32, 16, 32, 32, 16, 8, 8, 4] * 2
    equal = plan_of(Draft(0.5, window=(9, 4)), tensors, layout, cases)
    assert isinstance(equal.mask, BlockMask)
    assert equal.mask.block_q == 36


def test_strip_blocks_are_compact_and_cover_every_token_once():
    layout = VideoLayout(5, 45, 80)
    geometry = Draft(block=128, tiling="strips").geometry(layout, CPU)
    order = geometry.q.order.long()
    assert torch.equal(order.sort().values, torch.arange(layout.num_tokens))
    f, y, x = order // 3600, order % 3600 // 80, order % 80
    steps = [abs(axis.diff()) for axis in (f, y, x)]
    # The walk never jumps along rows of columns, only up and down within a strip's column.
    assert int(steps[0].max()) == 1
    assert int(steps[2].max()) <= 1
    for block in order.split(128)[:-1]:
        extent = [int(axis.max() - axis.min()) + 1 for axis in (block // 3600, block % 3600 // 80)]
        assert extent[0] <= 2
        assert extent[1] <= 24


def test_first_frame_stays_when_asked_for(cases):
    layout = VideoLayout(6, 8, 8, text_before=3)
    tensors = cases.qkv(4, 1, 2, layout.num_tokens, 16)
    for tiling in ("windows", "strips"):
        method = Draft(0.5, first_frame=True, block=16, tiling=tiling)
        keep = cases.natural_mask(plan_of(method, tensors, layout, cases), 1, 2)
        assert bool(keep[..., 3:67].all())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_queries_or_keys_keep_the_exact_count(value, cases):
    layout = VideoLayout(4, 8, 8)
    q, k, v = cases.qkv(5, 1, 2, layout.num_tokens, 16)
    for constant in ((torch.full_like(q, value), k, v), (q, torch.full_like(k, value), v)):
        plan = plan_of(Draft(0.3, block=16), constant, layout, cases)
        assert plan.mask.to_dense().sum((-1, -2)).tolist() == [[77, 77]]
        assert not bool(run_plan(*constant, plan).out.isnan().any())


def test_heads_choose_for_themselves(cases):
    layout = VideoLayout(4, 8, 8)
    q, k, v = cases.qkv(6, 1, 4, layout.num_tokens, 16)
    plan = plan_of(Draft(0.3, block=16), (q, k, v), layout, cases)
    swap = torch.tensor([2, 3, 1, 0])
    swapped = plan_of(Draft(0.3, block=16), [x[:, swap] for x in (q, k, v)], layout, cases)
    masks = plan.mask.to_dense()
    assert torch.equal(swapped.mask.to_dense(), masks[:, swap])
    assert not torch.equal(masks[:, 0], masks[:, 1])


def test_everything_is_dense(cases):
    layout = VideoLayout(3, 5, 7)
    tensors = cases.qkv(7, 1, 2, layout.num_tokens, 16)
    assert plan_of(Draft(1.0), tensors, layout, cases) is None
    every = plan_of(Draft(budget="top_p", p=1.0, block=16), tensors, layout, cases)
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors)
    torch.testing.assert_close(run_plan(*tensors, every).out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_plans_nearly_alike(dtype, cases):
    layout = VideoLayout(4, 8, 8)
    tensors = cases.qkv(8, 1, 2, layout.num_tokens, 16)
    method = Draft(0.3, block=16, second_moment=True)
    exact = plan_of(method, tensors, layout, cases).mask.to_dense()
    half = plan_of(method, [x.to(dtype) for x in tensors], layout, cases).mask.to_dense()
    assert int((exact != half).sum()) <= 0.02 * exact.numel()


def test_planning_is_deterministic(cases):
    layout = VideoLayout(3, 7, 9)
    tensors = cases.qkv(10, 1, 2, layout.num_tokens, 16)
    a, b = (plan_of(Draft(0.4, block=16), tensors, layout, cases, step=s) for s in (1, 7))
    assert torch.equal(a.mask.to_dense(), b.mask.to_dense())


@pytest.mark.parametrize(
    ("steps", "shift", "above", "dense"),
    # draft G1: the published gates on shifted timesteps, as noise levels.
    [(50, 7, 0.945, 15), (50, 5, 0.925, 15), (30, 13, 0.975, 8)],
)
def test_published_gates_give_the_published_dense_steps(steps, shift, above, dense, cases):
    schedule = DenseSchedule(dense_steps=0, dense_above_sigma=above)
    count = 0
    for step in range(steps):
        sigma = 1 - step / steps
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
        site = cases.site(step=step)
        site = type(site)(**{**vars(site), "sigma": sigma, "num_steps": steps})
        count += schedule.reason(site) is not None
    assert count == dense


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0},
        {"budget": "best"},
        {"p": 1.5},
        {"tiling": "hexagons"},
        {"window": (0, 4)},
        {"window": (4, 4), "tiling": "strips"},
        {"frames": 0},
        {"block": 2, "frames": 4},
    ],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(UsageError, match=r"must|use one of"):
        Draft(**wrong)


def test_windows_larger_than_the_grid_are_refused(cases):
    layout = VideoLayout(2, 9, 13)
    tensors = cases.qkv(11, 1, 1, layout.num_tokens, 16)
    with pytest.raises(UsageError, match=r"window=\(10, 4\) is larger than the grid of 9 rows"):
        plan_of(Draft(0.5, window=(10, 4)), tensors, layout, cases)


def test_budgets_below_the_forced_blocks_are_refused(cases):
    layout = VideoLayout(2, 9, 13, text_after=60)
    tensors = cases.qkv(12, 1, 1, layout.num_tokens, 16)
    with pytest.raises(UsageError, match=r"density=0\.1 is too small here"):
        plan_of(Draft(0.1), tensors, layout, cases)


def test_a_grid_of_one_token_names_the_only_density(cases):
    layout = VideoLayout(1, 1, 1)
    tensors = cases.qkv(13, 1, 1, 1, 16)
    with pytest.raises(UsageError, match=r"at least 1\.0000"):
        plan_of(Draft(0.3), tensors, layout, cases)
    assert plan_of(Draft(1.0), tensors, layout, cases) is None


def test_search_space_names_parameters():
    for name, choices in Draft().search_space().items():
        for value in choices.values:
            Draft(**{name: value})


@pytest.mark.parametrize("tiling", ["strips", "windows"])
def test_tokens_are_moved_while_they_are_pooled(tiling, cases):
    layout = VideoLayout(2, 9, 20)
    tensors = cases.qkv(14, 1, 2, layout.num_tokens, 16)
    plan = plan_of(Draft(0.5, tiling=tiling, block=32), tensors, layout, cases)
    # Windows of several sizes are pooled where they lie.
    assert (plan.tokens is not None) == isinstance(plan.mask, BlockMask)
    order = plan.q_order[0, 0].long()
    for got, x in zip(plan.in_order(*tensors), tensors, strict=True):
        assert torch.equal(got, x[:, :, order])
