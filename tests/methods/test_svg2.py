"""SVG2, case by case of the research's section 5 (svg.md).

K1-K7 K9: tests/kernels/test_kmeans.py (tie and empty, means and sizes, inertia, one cluster, as
many as tokens, transposed, duplicates, no iterations, seed). K5 K8 also here:
tight_as_scikit_learns, warm_start; K6: equal_keys, identical_tokens; K8's resets:
next_generation, branches (shapes: tests/test_attention.py). T1-T7: test_clusters.py; T2 T5 also
test_budget.py.
A1: every_cluster_kept. A2 A7: output_is_attention, text_attends. A3: blocks_of_any_size. A4:
order_inside_clusters (round trip: tests/kernels/test_permute.py). A5 A6:
tests/kernels/test_block_sparse_attention.py. A7's padding: padding_text. A8: identical_tokens.
A9: density_counts. W cases: see test_svg.py.
"""

from dataclasses import replace

import pytest
import torch

from vidsparse.attention import SparseAttention, dense_attention, run_plan
from vidsparse.errors import UsageError
from vidsparse.kernels.block_mask import RaggedBlockMask
from vidsparse.kernels.block_sparse_attention import Impl
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import build_method
from vidsparse.methods.clusters import spread_tokens
from vidsparse.methods.svg2 import Svg2, video_density
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.schedule import DenseSchedule

SITE = CallSite("transformer", 3, 8, 5, 20, 0.5, 0, 0)
VIDEO = VideoLayout(4, 9, 11)
WITH_TEXT = VideoLayout(3, 9, 11, text_before=4, text_after=7)
SMALL = Svg2(density=0.4, q_clusters=9, k_clusters=25, first_iterations=5)


def qkv(layout, seed=0, B=1, H=2, D=16):
    generator = torch.Generator().manual_seed(seed)
    shape = (B, H, layout.num_tokens, D)
    return tuple(torch.randn(shape, generator=generator) for _ in range(3))


def grouped(layout, groups, seed=0, D=16):
    """Queries and keys that take only ``groups`` different values each, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(layout.num_tokens) * 7 % groups
    values = torch.randn(2, groups, D, generator=generator) * 2
    v = torch.randn(1, 1, layout.num_tokens, D, generator=generator)
    return values[0, labels][None, None], values[1, labels][None, None], v


def plan(method, q, k, layout, state=None, site=SITE):
    state = method.init_state() if state is None else state
    return method.plan(q, k, k, layout, site, state)


def masked_dense(q, k, v, plan):
    """Attention under the plan's mask, brought to natural order token by token."""
    mask = plan.mask.token_mask()
    rows, columns = plan.q_order.long().argsort(-1), plan.kv_order.long().argsort(-1)
    mask = mask.gather(2, rows[..., None].expand_as(mask))
    mask = mask.gather(3, columns[:, :, None].expand_as(mask))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), mask


@pytest.mark.parametrize("layout", [VIDEO, WITH_TEXT])
@pytest.mark.parametrize("density", [0.35, 0.6, 0.9])
@pytest.mark.parametrize("heads", ["shared", "equal"])
def test_realised_density_is_the_requested_one(layout, density, heads):
    q, k, _ = qkv(layout)
    method = replace(SMALL, density=density, k_clusters=40, heads=heads)
    assert float(plan(method, q, k, layout).density()) == pytest.approx(density, abs=0.01)


def test_equal_heads_keep_the_same_and_shared_ones_what_they_need():
    q, k, _ = qkv(VIDEO)
    q[:, 0] *= 4
    kept = {}
    for heads in ("shared", "equal"):
        mask = plan(replace(SMALL, k_clusters=60, heads=heads), q, k, VIDEO).mask
        kept[heads] = mask.token_mask().float().mean((0, 2, 3)).tolist()
    assert kept["equal"][0] == pytest.approx(kept["equal"][1], abs=0.02)
    assert kept["shared"][0] < kept["shared"][1] - 0.1


@pytest.mark.parametrize("layout", [VIDEO, WITH_TEXT])
def test_orders_are_independent_permutations_of_the_video(layout):
    q, k, _ = qkv(layout)
    made = plan(SMALL, q, k, layout)
    made.mask.validate()
    natural = torch.arange(layout.num_tokens, dtype=torch.int32).expand(1, 2, -1)
    for order in (made.q_order, made.kv_order):
        assert order.dtype == torch.int32
        assert order.sort(-1).values.equal(natural)
        assert order[..., : layout.text_before].equal(natural[..., : layout.text_before])
        assert order[..., layout.video_end :].equal(natural[..., layout.video_end :])
    assert not made.q_order.equal(made.kv_order)


def test_output_is_attention_under_the_mask():
    q, k, v = qkv(WITH_TEXT)
    made = plan(SMALL, q, k, WITH_TEXT)
    expected, mask = masked_dense(q, k, v, made)
    torch.testing.assert_close(run_plan(q, k, v, made).out, expected, atol=1e-5, rtol=1e-4)
    assert float(made.density()) == pytest.approx(mask.double().mean().item(), abs=1e-6)


SIZES = (129, 0, 1, 127, 128, 0, 15)


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("density", [0.1, 0.3, 0.8])
def test_blocks_of_any_size_are_attended(D, density):
    # A3, on both sides and in another order per head.
    generator = torch.Generator().manual_seed(D)
    shuffles = [[torch.randperm(7, generator=generator) for _ in "hh"] for _ in "qk"]
    q_sizes, k_sizes = (torch.tensor(SIZES)[torch.stack(s)][None] for s in shuffles)
    q, k, v = torch.randn(3, 1, 2, sum(SIZES), D, generator=generator)
    chosen = torch.rand(1, 2, 7, 7, generator=generator) < density
    chosen[..., 0] = True
    # A row may keep empty clusters only: it has no key and gives zeros.
    mask = RaggedBlockMask.from_sizes(chosen, q_sizes, k_sizes, seq_q=400, seq_kv=400)
    wide = mask.token_mask()
    scores = (q.double() @ k.double().mT * D**-0.5).masked_fill(~wide, -torch.inf)
    expected = torch.softmax(scores, -1).nan_to_num(0) @ v.double()
    out = run_plan(q, k, v, AttentionPlan(mask), impl=Impl.TORCH).out
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-4)


def test_order_inside_clusters_and_their_names_do_not_matter():
    # A4.
    q, k, v = qkv(VIDEO)
    made = plan(SMALL, q, k, VIDEO)
    mask = made.mask
    names = torch.randperm(mask.num_kv_blocks, generator=torch.Generator().manual_seed(1))
    orders, sizes = [], mask.kv_offsets.diff()
    for h in range(2):
        parts = made.kv_order[0, h].split(sizes[0, h].tolist())
        orders.append(torch.cat([parts[i].flip(0) for i in names]))
    renamed = RaggedBlockMask.from_sizes(
        mask.mask[..., names], mask.q_offsets.diff(), sizes[..., names], seq_q=396, seq_kv=396
    )
    other = AttentionPlan(renamed, made.q_order, torch.stack(orders)[None])
    torch.testing.assert_close(
        run_plan(q, k, v, other).out, run_plan(q, k, v, made).out, atol=1e-5, rtol=1e-4
    )


def test_text_attends_to_everything_and_everything_to_text():
    q, k, v = qkv(WITH_TEXT)
    _, mask = masked_dense(q, k, v, plan(SMALL, q, k, WITH_TEXT))
    text = torch.ones(WITH_TEXT.num_tokens, dtype=torch.bool)
    text[WITH_TEXT.text_before : WITH_TEXT.video_end] = False
    assert mask[:, :, text].all()
    assert mask[:, :, :, text].all()


def test_every_cluster_kept_is_dense():
    q, k, v = qkv(WITH_TEXT)
    made = plan(replace(SMALL, top_p=1.0), q, k, WITH_TEXT)
    assert float(made.density()) == 1
    out = run_plan(q, k, v, made).out
    torch.testing.assert_close(out, dense_attention(q, k, v), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("p", [0.3, 0.7, 0.95])
def test_identical_tokens_per_cluster_recover_the_mass_asked_for(p):
    # svg.md A8: centroid scores are then the true block masses. More clusters than values: K6.
    q, k, v = grouped(VIDEO, 12)
    method = replace(SMALL, top_p=p, q_clusters=99, k_clusters=99, first_iterations=3)
    made = plan(method, q, k, VIDEO)
    _, mask = masked_dense(q, k, v, made)
    weights = torch.softmax(q.double() @ k.double().mT / q.shape[-1] ** 0.5, -1)
    recovered = (weights * mask).sum(-1)
    assert recovered.min() >= p
    assert float(made.density()) < 1


def test_density_counts_token_pairs():
    # svg.md A9.
    q, k, _ = qkv(VIDEO)
    made = plan(SMALL, q, k, VIDEO).mask
    q_sizes, k_sizes = made.q_offsets.diff().long(), made.kv_offsets.diff().long()
    kept = (made.mask.long() * q_sizes[..., None] * k_sizes[..., None, :]).sum()
    pairs = made.mask.shape[1] * VIDEO.num_tokens**2
    assert float(made.density()) == pytest.approx(int(kept) / pairs, abs=1e-7)


def test_clusters_are_as_tight_as_scikit_learns():
    cluster = pytest.importorskip("sklearn.cluster")
    layout = VideoLayout(4, 16, 16)
    generator = torch.Generator().manual_seed(0)
    # Smooth over the grid as video tokens are: a few waves per channel.
    axes = torch.meshgrid(*(torch.linspace(0, 1, n) for n in layout.grid), indexing="ij")
    places = torch.stack(axes, -1).view(-1, 3)
    waves = torch.randn(3, 16, generator=generator) * 6
    x = torch.sin(places @ waves) + 0.1 * torch.randn(1024, 16, generator=generator)
    method = Svg2(density=0.3, q_clusters=40, k_clusters=40)
    state = method.init_state()
    for step in range(5, 10):
        made = method.plan(x[None, None], x[None, None], x, layout, replace(SITE, step=step), state)
    blocks = x[made.q_order[0, 0].long()].split(made.mask.q_offsets.diff()[0, 0].tolist())
    inertia = sum(float((b - b.mean(0)).square().sum()) for b in blocks if len(b))
    theirs = cluster.KMeans(40, init=spread_tokens(x[None, None], 40)[0, 0].numpy(), n_init=1)
    assert inertia <= 1.01 * theirs.fit(x.numpy()).inertia_


def test_warm_start_from_converged_centroids_changes_nothing():
    # svg.md K8.
    q, k, _ = qkv(VIDEO)
    method = replace(SMALL, first_iterations=200, iterations=1)
    state = method.init_state()
    first = plan(method, q, k, VIDEO, state)
    second = plan(method, q, k, VIDEO, state, replace(SITE, step=6))
    assert first.q_order.equal(second.q_order)
    assert first.mask.kv_offsets.equal(second.mask.kv_offsets)


def test_warm_start_continues_where_the_step_before_ended():
    q, k, _ = qkv(VIDEO, seed=3)
    method = replace(SMALL, first_iterations=3, iterations=2)
    state = method.init_state()
    plan(method, q, k, VIDEO, state)
    warm = plan(method, q, k, VIDEO, state, replace(SITE, step=6))
    assert warm.q_order.equal(plan(replace(method, first_iterations=5), q, k, VIDEO).q_order)


def test_plans_serve_as_many_steps_as_asked():
    method = replace(SMALL, refresh_every=3)
    state = method.init_state()
    plans = []
    for step in range(4, 9):
        q, k, _ = qkv(VIDEO, seed=step)
        plans.append(plan(method, q, k, VIDEO, state, replace(SITE, step=step)))
    assert plans[0] is plans[1] is plans[2]
    assert plans[3] is plans[4] is not plans[0]


def attention(**options):
    return SparseAttention(replace(SMALL, **options), DenseSchedule(dense_steps=0), impl=Impl.TORCH)


def test_same_input_gives_the_same_output_in_the_next_generation():
    sparse = attention()
    q, k, v = qkv(WITH_TEXT)
    other = qkv(WITH_TEXT, seed=1)
    first = sparse(q, k, v, layout=WITH_TEXT, site=SITE)
    sparse(*other, layout=WITH_TEXT, site=SITE)
    again = sparse(q, k, v, layout=WITH_TEXT, site=replace(SITE, generation=1))
    assert first.equal(again)


def test_branches_do_not_share_clusters():
    sparse = attention()
    q, k, v = qkv(WITH_TEXT)
    alone = sparse(q, k, v, layout=WITH_TEXT, site=SITE)
    mixed = attention()
    mixed(*qkv(WITH_TEXT, seed=1), layout=WITH_TEXT, site=replace(SITE, branch=1))
    assert mixed(q, k, v, layout=WITH_TEXT, site=SITE).equal(alone)


def test_branches_share_clusters_when_asked_to():
    first, second = qkv(WITH_TEXT), qkv(WITH_TEXT, seed=1)
    shared, alone = attention(share_branches=True), attention()
    for sparse in (shared, alone):
        sparse(*first, layout=WITH_TEXT, site=SITE)
    other = replace(SITE, branch=1)
    outputs = [s(*second, layout=WITH_TEXT, site=other) for s in (shared, alone)]
    assert not outputs[0].equal(outputs[1])
    # The second branch goes on from the centroids of the first, with the later iterations.
    state = SMALL.init_state()
    plan(SMALL, *first[:2], WITH_TEXT, state)
    made = plan(SMALL, *second[:2], WITH_TEXT, state, replace(SITE, step=6))
    torch.testing.assert_close(outputs[0], run_plan(*second, made, impl=Impl.TORCH).out)


def test_sharing_branches_keep_their_own_plans():
    method = replace(SMALL, refresh_every=2, share_branches=True)
    state, plans = method.init_state(), {}
    for step in (4, 5):
        for branch in (0, 1):
            q, k, _ = qkv(VIDEO, seed=branch)
            where = replace(SITE, step=step, branch=branch)
            plans[step, branch] = plan(method, q, k, VIDEO, state, where)
    assert plans[4, 0] is plans[5, 0] is not plans[4, 1]
    assert plans[4, 1] is plans[5, 1]


def test_batch_rows_are_planned_as_if_alone():
    q, k, v = (torch.cat(pair) for pair in zip(qkv(VIDEO), qkv(VIDEO, seed=1), strict=True))
    both = run_plan(q, k, v, plan(SMALL, q, k, VIDEO)).out
    for row in (slice(0, 1), slice(1, 2)):
        alone = run_plan(q[row], k[row], v[row], plan(SMALL, q[row], k[row], VIDEO)).out
        torch.testing.assert_close(both[row], alone, atol=1e-5, rtol=1e-4)


def test_padding_text_changes_no_real_token():
    layout = replace(WITH_TEXT, text_valid=(3,))
    q, k, v = qkv(layout)
    real = slice(0, layout.video_end + 3)
    before = attention()(q, k, v, layout=layout, site=SITE)[:, :, real]
    for x in (q, k, v):
        x[:, :, real.stop :] = 5.0
    assert attention()(q, k, v, layout=layout, site=SITE)[:, :, real].equal(before)


def test_equal_keys_are_one_cluster_and_exact():
    q, k, v = qkv(VIDEO)
    k = torch.ones_like(k)
    made = plan(SMALL, q, k, VIDEO)
    expected = dense_attention(q, k, v)
    torch.testing.assert_close(run_plan(q, k, v, made).out, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_non_finite_tokens_are_named_with_layer_and_step(bad, which):
    tensors = qkv(VIDEO)
    tensors[which][0, 1, 17, 2] = bad
    with pytest.raises(ValueError, match=r"layer 3 step 5 .*NaN or infinity"):
        plan(SMALL, *tensors[:2], VIDEO)


@pytest.mark.parametrize("field", ["q_clusters", "k_clusters"])
def test_more_clusters_than_tokens_says_so(field):
    q, k, _ = qkv(VIDEO)
    with pytest.raises(UsageError, match=f"{field}=397 exceeds the 396 video tokens"):
        plan(replace(SMALL, **{field: 397}), q, k, VIDEO)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p=1.5 must lie in \(0, 1\]"),
        ({"min_ratio": -0.1}, r"min_ratio=-0.1"),
        ({"min_ratio": 0.1}, "give both or neither"),
        ({"heads": "each"}, "use 'equal', 'rows' or 'shared'"),
        ({"iterations": 0}, "iterations=0 must be at least 1"),
        ({"refresh_every": 0}, "refresh_every=0 must be at least 1"),
        ({"k_clusters": 0}, "k_clusters=0 must be at least 1"),
    ],
)
def test_parameters_out_of_range_say_so(options, message):
    with pytest.raises(UsageError, match=message):
        build_method("svg2", options)


def test_density_below_the_text_names_the_least_possible():
    layout = VideoLayout(2, 4, 4, text_after=32)
    with pytest.raises(UsageError, match=r"32 text tokens .* density of at least 0\.7500"):
        video_density(0.5, layout)
    assert video_density(1.0, layout) == 1


def test_a_density_that_text_takes_whole_leaves_each_query_cluster_its_best():
    layout = VideoLayout(4, 8, 8, text_after=256)
    q, k, v = qkv(layout)
    made = plan(Svg2(density=0.75, q_clusters=8, k_clusters=16), q, k, layout)
    assert made.mask.mask[:, :, :8, :16].sum(-1).eq(1).all()
    assert 0.75 < float(made.density()) < 0.8
    expected, _ = masked_dense(q, k, v, made)
    torch.testing.assert_close(run_plan(q, k, v, made).out, expected, atol=1e-5, rtol=1e-4)


def test_default_clusters_are_the_published_ones():
    assert Svg2().cluster_counts(VideoLayout(21, 45, 80)) == (300, 1000)
    assert Svg2().cluster_counts(VideoLayout(21, 30, 52))[0] == pytest.approx(200, abs=5)
    assert Svg2().cluster_counts(VideoLayout(1, 1, 1)) == (1, 1)


def test_a_cluster_per_token_is_possible():
    layout = VideoLayout(2, 3, 5)
    q, k, v = qkv(layout)
    made = plan(Svg2(density=0.5, q_clusters=30, k_clusters=30), q, k, layout)
    assert float(made.density()) == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(
        run_plan(q, k, v, made).out, masked_dense(q, k, v, made)[0], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("tokens", "count"), [(30, 30), (1000, 7), (396, 395), (5, 1)])
def test_first_centroids_are_distinct_tokens(tokens, count):
    x = torch.arange(tokens, dtype=torch.float32).view(1, 1, tokens, 1)
    chosen = spread_tokens(x, count).flatten()
    assert len(chosen.unique()) == count == len(chosen)


def test_search_space_names_fields():
    for name, values in Svg2().search_space().items():
        for value in values.values:
            assert getattr(replace(Svg2(), **{name: value}), name) == value


def gpu_qkv(layout, seed=0, H=4, D=64):
    return tuple(x.to("cuda", torch.bfloat16) for x in qkv(layout, seed, H=H, D=D))


@pytest.mark.gpu
def test_gpu_output_is_attention_under_the_mask():
    layout = VideoLayout(5, 24, 32, text_before=30)
    q, k, v = gpu_qkv(layout)
    made = plan(Svg2(density=0.3), q, k, layout)
    made.mask.validate()
    expected, mask = masked_dense(q.float(), k.float(), v.float(), made)
    torch.testing.assert_close(run_plan(q, k, v, made).out.float(), expected, atol=2e-2, rtol=2e-2)
    assert float(mask.double().mean()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.gpu
def test_non_finite_tokens_on_a_gpu_are_named_by_the_next_step_at_the_latest():
    q, k, _ = gpu_qkv(VIDEO)
    q[0, 1, 17, 2] = float("nan")
    state = SMALL.init_state()

    def two_steps():
        # A GPU that is done before the first call asks has it raise; both name the first step.
        plan(SMALL, q, k, VIDEO, state)
        torch.cuda.synchronize()
        plan(SMALL, q, k, VIDEO, state, replace(SITE, step=6))

    with pytest.raises(ValueError, match=r"layer 3 step 5 .*NaN or infinity"):
        two_steps()
