from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch

from vidsparse.attention import SparseAttention, dense_attention, run_plan
from vidsparse.errors import UsageError
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.block_sparse_attention import Impl
from vidsparse.layout import VideoLayout, pixel_major_order
from vidsparse.methods.base import SparseMethod, build_method
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.schedule import DenseSchedule

LAYOUT = VideoLayout(5, 8, 8)
SITE = CallSite("transformer", 0, 8, 3, 10, 0.5, 0, 0)
SPARSE = DenseSchedule(dense_steps=0)


@dataclass(frozen=True)
class EveryOther(SparseMethod):
    """Keeps every other block, in pixel-major order; notes what it saw."""

    name: ClassVar[str] = "every-other"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    seen: list = field(default_factory=list, compare=False)
    observed: list = field(default_factory=list, compare=False)

    def init_state(self):
        return {"calls": 0}

    def plan(self, q, k, v, layout, site, state):
        state["calls"] += 1
        self.seen.append((site, layout, state["calls"]))
        S = layout.num_tokens
        N = -(-S // 64)
        keep = (torch.arange(N)[:, None] + torch.arange(N)) % 2 == 0
        mask = BlockMask.from_dense(keep[None, None], block_q=64, block_kv=64, seq_q=S, seq_kv=S)
        order = pixel_major_order(layout).view(1, 1, -1)
        return AttentionPlan(mask, order, order)

    def observe(self, output, plan, site, state):
        self.observed.append(output.lse.shape)


def qkv(layout=LAYOUT, B=1, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, B, 2, layout.num_tokens, 16, generator=g, dtype=dtype).unbind(0)


def test_permuted_full_mask_is_dense():
    q, k, v = qkv()
    S = LAYOUT.num_tokens
    full = BlockMask.full(block_q=64, block_kv=64, seq_q=S, seq_kv=S)
    orders = torch.stack([torch.randperm(S), torch.arange(S)]).view(1, 2, S)
    plan = AttentionPlan(full, orders, orders.flip(1))
    result = run_plan(q, k, v, plan, impl=Impl.REFERENCE)
    torch.testing.assert_close(result.out, dense_attention(q, k, v))
    lse = torch.logsumexp(q @ k.mT / 4, -1)
    torch.testing.assert_close(result.lse, lse.float())


def test_plan_in_its_order_equals_the_mask_in_natural_order():
    q, k, v = qkv()
    plan = EveryOther().plan(q, k, v, LAYOUT, SITE, {"calls": 0})
    element = plan.mask.to_dense()[0, 0].repeat_interleave(64, 0).repeat_interleave(64, 1)
    position = torch.argsort(plan.q_order[0, 0])
    natural = element[position][:, position]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=natural)
    torch.testing.assert_close(run_plan(q, k, v, plan, impl=Impl.REFERENCE).out, expected)


def test_density_one_calls_the_dense_op_and_never_plans():
    method = EveryOther(density=1.0)
    attend = SparseAttention(method, SPARSE)
    q, k, v = qkv()
    out = attend(q, k, v, layout=LAYOUT, site=SITE, dense=lambda q, k, v: v + 1)
    assert torch.equal(out, v + 1)
    assert method.seen == []
    assert attend.recorder.dense == {"density 1": 1}


@pytest.mark.parametrize(
    "method",
    [
        build_method("svg", {"density": 0.5, "blocks": (16, 16)}),
        build_method("draft", {"density": 0.5, "block": 16}),
        build_method("draft", {"density": 0.5, "block": 16, "budget": "shared"}),
        build_method("svg2", {"density": 0.5, "q_clusters": 20, "k_clusters": 60}),
        build_method("svg2", {"density": 0.5, "heads": "equal", "k_clusters": 60}),
        build_method("random", {"density": 0.5, "blocks": (16, 16)}),
        build_method("oracle", {"density": 0.5, "blocks": (16, 16)}),
    ],
    ids=lambda method: method.name,
)
def test_recorded_density_is_the_requested_one_for_every_method(method):
    # Rows with 7 and 20 valid text tokens: padding counts neither as kept nor as possible.
    layout = VideoLayout(5, 8, 8, text_after=20, text_valid=(7, 20))
    attend = SparseAttention(method, DenseSchedule(dense_steps=1))
    q, k, v = qkv(layout, B=2, dtype=torch.float32)
    for step in (0, 1, 2):
        attend(q, k, v, layout=layout, site=replace(SITE, step=step))
    realised = attend.recorder.sparse_density()
    assert 0.5 <= realised < 0.51
    # A call of two rows is one call, dense or sparse.
    assert attend.recorder.sparse_calls == 2
    assert attend.recorder.overall_density() == pytest.approx((1 + 2 * realised) / 3)


def test_dense_steps_and_short_sequences_are_counted_apart():
    attend = SparseAttention(EveryOther(), DenseSchedule(dense_steps=2))
    q, k, v = qkv()
    for step in range(4):
        attend(q, k, v, layout=LAYOUT, site=replace(SITE, step=step))
    short = VideoLayout(1, 4, 4)
    attend(*qkv(short), layout=short, site=replace(SITE, step=3))
    assert attend.recorder.dense == {"dense steps": 2, "short sequence": 1}
    assert attend.recorder.sparse_calls == 2
    assert attend.recorder.sparse_density() == pytest.approx(13 / 25)
    assert attend.recorder.overall_density() == pytest.approx((3 + 26 / 25) / 5)


def test_states_are_apart_per_branch_and_layer_and_end_with_the_generation():
    method = EveryOther()
    attend = SparseAttention(method, SPARSE)
    q, k, v = qkv()
    sites = [SITE, SITE, replace(SITE, branch=1), replace(SITE, layer=1)]
    for site in [*sites, replace(SITE, generation=1)]:
        attend(q, k, v, layout=LAYOUT, site=site)
    assert [calls for _, _, calls in method.seen] == [1, 2, 1, 1, 1]


@dataclass(frozen=True)
class OneState(EveryOther):
    """Shares one state among all layers of a step's parity."""

    def state_key(self, site):
        return site.step % 2


def test_the_method_says_which_calls_share_a_state():
    method = OneState()
    attend = SparseAttention(method, SPARSE)
    q, k, v = qkv()
    sites = [SITE, replace(SITE, branch=1), replace(SITE, layer=1), replace(SITE, step=4)]
    for site in [*sites, replace(SITE, generation=1)]:
        attend(q, k, v, layout=LAYOUT, site=site)
    assert [calls for _, _, calls in method.seen] == [1, 2, 3, 1, 1]


def test_another_shape_gets_another_state():
    method = EveryOther()
    attend = SparseAttention(method, SPARSE)
    larger = VideoLayout(6, 8, 8)
    for layout in (LAYOUT, larger, LAYOUT):
        attend(*qkv(layout), layout=layout, site=SITE)
    assert [calls for _, _, calls in method.seen] == [1, 1, 2]


def test_the_method_observes_the_output_of_its_plan():
    method = EveryOther()
    SparseAttention(method, SPARSE)(*qkv(), layout=LAYOUT, site=SITE)
    assert method.observed == [(1, 2, 320)]


def test_a_plan_with_an_lse_gets_the_mass_of_its_kept_blocks():
    q, k, v = qkv()
    S = LAYOUT.num_tokens
    order = pixel_major_order(LAYOUT).view(1, 1, -1)
    full = BlockMask.full(block_q=64, block_kv=64, seq_q=S, seq_kv=S)
    lse = torch.logsumexp(q @ k.mT / 4, -1)[:, :, order.flatten()].float()
    plan = AttentionPlan(full, order, order, stats_lse=lse)
    stats = run_plan(q, k, v, plan, impl=Impl.REFERENCE).block_stats
    rows = torch.full((1, 2, S // 64), 64.0)
    torch.testing.assert_close(stats.sum(-1), rows, rtol=1e-5, atol=1e-5)
    assert run_plan(q, k, v, AttentionPlan(full, order, order)).block_stats is None


def test_any_method_compensates_when_asked_and_keeps_the_same_blocks():
    q, k, v = qkv(dtype=torch.float32)
    outs = {}
    for compensate in (False, True):
        attend = SparseAttention(EveryOther(compensate=compensate), SPARSE)
        outs[compensate] = attend(q, k, v, layout=LAYOUT, site=SITE)
        assert attend.recorder.sparse_density() == pytest.approx(13 / 25)
    plan = EveryOther().plan(q, k, v, LAYOUT, SITE, {"calls": 0})
    expected = run_plan(q, k, v, replace(plan, compensate=True), impl=Impl.REFERENCE).out
    torch.testing.assert_close(outs[True], expected)
    dense = dense_attention(q, k, v)
    # Random tokens attend almost evenly: their means come close to all of them.
    assert (outs[True] - dense).norm() < 0.7 * (outs[False] - dense).norm()


def test_compensate_takes_true_or_false():
    with pytest.raises(UsageError, match=r"compensate='yes' must be true or false"):
        EveryOther(compensate="yes")


def test_padding_text_reaches_no_real_token():
    layout = VideoLayout(5, 8, 8, text_after=20, text_valid=(7, 20))
    q, k, v = qkv(layout, B=2)
    attend = SparseAttention(EveryOther(), SPARSE)
    out = attend(q, k, v, layout=layout, site=SITE)
    k2, v2 = k.clone(), v.clone()
    k2[0, :, 327:] = 1e3
    v2[0, :, 327:] = 1e3
    changed = attend(q, k2, v2, layout=layout, site=SITE)
    assert torch.equal(changed[0, :, :327], out[0, :, :327])
    assert torch.equal(changed[1], out[1])
    assert not torch.equal(changed[0, :, 327:], out[0, :, 327:])


def test_padding_rows_see_only_padding():
    layout = VideoLayout(5, 8, 8, text_after=20, text_valid=(7,))
    q, k, v = qkv(layout)
    out = SparseAttention(EveryOther(), SPARSE)(q, k, v, layout=layout, site=SITE)
    alone = dense_attention(q[:, :, 327:], k[:, :, 327:], v[:, :, 327:])
    torch.testing.assert_close(out[:, :, 327:], alone)


def test_a_batch_equals_its_rows():
    layout = VideoLayout(5, 8, 8, text_after=20, text_valid=(7, 20))
    q, k, v = qkv(layout, B=2)
    both = SparseAttention(EveryOther(), SPARSE)(q, k, v, layout=layout, site=SITE)
    for row in range(2):
        one = (slice(row, row + 1),)
        alone = replace(layout, text_valid=layout.text_valid[row : row + 1])
        out = SparseAttention(EveryOther(), SPARSE)(q[one], k[one], v[one], layout=alone, site=SITE)
        torch.testing.assert_close(out, both[one])


def test_a_layout_of_another_length_is_refused_with_the_site():
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"transformer layer 0 step 3.*320.*384"):
        SparseAttention(EveryOther())(q, k, v, layout=VideoLayout(6, 8, 8), site=SITE)
