from dataclasses import replace

import pytest
import torch

from vidsparse.attention import SparseAttention, dense_attention
from vidsparse.errors import UsageError
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.block_sparse_attention import Impl
from vidsparse.kernels.running_statistics import RunningStat
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import build_method
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.precision import Precision, attend_8bit
from vidsparse.request import SparseRequest, parse_method
from vidsparse.schedule import DenseSchedule

LAYOUT = VideoLayout(4, 12, 16)
DENSE_SITE = CallSite("transformer", 0, 8, 0, 10, 0.9, 0, 0)
SPARSE_SITE = replace(DENSE_SITE, step=5)


def qkv(layout=LAYOUT, B=1):
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, B, 2, layout.num_tokens, 32, generator=g).unbind(0)


def attend(precision, site, layout=LAYOUT, method="random", B=1):
    attention = SparseAttention(
        build_method(method, {"density": 0.4}), DenseSchedule(0.2), precision=precision
    )
    return attention(*qkv(layout, B), layout=layout, site=site)


def off(got, want):
    return float((got - want).norm() / want.norm())


def test_8bit_sparse_rounds_sparse_calls_and_leaves_dense_ones_alone():
    assert torch.equal(
        attend(Precision.SPARSE_8BIT, DENSE_SITE), attend(Precision.NATIVE, DENSE_SITE)
    )
    error = off(attend(Precision.SPARSE_8BIT, SPARSE_SITE), attend(Precision.NATIVE, SPARSE_SITE))
    assert 1e-3 < error < 0.05


def test_8bit_rounds_dense_calls_too():
    error = off(attend(Precision.ALL_8BIT, DENSE_SITE), attend(Precision.NATIVE, DENSE_SITE))
    assert 1e-3 < error < 0.05


def test_looks_at_every_block_are_native_and_what_they_find_is_used_in_8_bits():
    attention = SparseAttention(
        build_method("lite", {"density": 0.6}), DenseSchedule(0), precision=Precision.SPARSE_8BIT
    )
    sites = [replace(SPARSE_SITE, step=step) for step in range(3)]
    out = [attention(*qkv(), layout=LAYOUT, site=site) for site in sites]
    assert attention.recorder.dense == {"lite looks at every tile": 2}
    assert off(out[0], dense_attention(*qkv())) < 1e-5
    assert attention.recorder.sparse_density() == pytest.approx(0.6, abs=0.01)
    native = replace(attention, precision=Precision.NATIVE, _states=dict(attention._states))
    exact = native(*qkv(), layout=LAYOUT, site=replace(SPARSE_SITE, step=3))
    assert 1e-3 < off(out[2], exact) < 0.05


@pytest.mark.parametrize("site", [DENSE_SITE, SPARSE_SITE], ids=["dense", "sparse"])
def test_8bit_dense_calls_never_see_padding(site):
    layout = VideoLayout(4, 12, 16, text_after=20, text_valid=(7, 20))
    native = attend(Precision.NATIVE, DENSE_SITE, layout.without_padding(20), B=2)
    out = attend(Precision.ALL_8BIT, site, layout, B=2)
    assert out.isfinite().all()
    if site is DENSE_SITE:
        # Row 1 has no padding; row 0 must be as if its padding did not exist.
        assert off(out[1], native[1]) < 0.05
        end = layout.video_end + 7
        short = [x[:1, :, :end] for x in qkv(layout, 2)]
        assert off(out[:1, :, :end], dense_attention(*short)) < 0.05


def test_what_8bit_cannot_do_is_refused_by_name():
    S = LAYOUT.num_tokens
    full = BlockMask.full(block_q=64, block_kv=64, seq_q=S, seq_kv=S)
    lse = torch.zeros(1, 2, S)
    for plan, what in (
        (AttentionPlan(full, stats_lse=lse), "no block statistics"),
        (AttentionPlan(full, running=RunningStat.MAX), "no block statistics"),
        (AttentionPlan(full, compensate=True), "no compensation"),
    ):
        with pytest.raises(UsageError, match=what):
            attend_8bit(*qkv(), plan, impl=Impl.AUTO)
    with pytest.raises(UsageError, match="varying size; use block_sparse_attention"):
        attend(Precision.SPARSE_8BIT, SPARSE_SITE, method="svg2")
    with pytest.raises(UsageError, match="torch has no 8-bit attention"):
        attend_8bit(*qkv(), AttentionPlan(full), impl=Impl.TORCH)


def test_a_method_on_the_command_line_may_have_its_own_precision():
    shared = SparseRequest("", None, precision="8bit")
    assert parse_method("svg:precision=8bit-sparse", shared).precision == "8bit-sparse"
    assert parse_method("svg", shared).precision == "8bit"
    with pytest.raises(UsageError, match="unknown precision '4bit'; choose one of native"):
        parse_method("svg:precision=4bit", shared)
