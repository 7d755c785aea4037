import pytest
import torch

from vidsparse.attention import run_plan
from vidsparse.errors import UsageError
from vidsparse.kernels.block_errors import block_errors
from vidsparse.kernels.block_means import key_value_means
from vidsparse.layout import VideoLayout
from vidsparse.methods.compensated import Compensated
from vidsparse.methods.oracle_error import OracleError
from vidsparse.profiling.synthetic import video_qkv

LAYOUT = VideoLayout(5, 6, 8, text_after=13)
SMALL = (16, 8)


def in_order(tensors, geometry):
    order = geometry.q.order.long()
    return [x[:, :, order] for x in tensors]


def test_errors_equal_replacing_one_block_at_a_time(cases):
    # To first order the output moves by this; small blocks of a wide softmax move it little.
    geometry = Compensated(0.5, blocks=SMALL).geometry(LAYOUT, torch.device("cpu"))
    q, k, v = in_order(cases.qkv(0, 1, 2, LAYOUT.num_tokens, 16), geometry)
    mask = geometry.plan(geometry.forced[None, None]).mask
    means = key_value_means(k, v, mask)
    errors = block_errors(q, k, v, means, block_q=SMALL[0], block_kv=SMALL[1])
    q, k, v = (x.double() for x in (q, k, v))
    logits = q @ k.mT / 4
    exact = torch.softmax(logits, -1) @ v
    for j, (first, last) in enumerate(zip(range(0, 253, 8), range(8, 261, 8), strict=True)):
        last = min(last, LAYOUT.num_tokens)
        rest = [*range(first), *range(last, LAYOUT.num_tokens)]
        mean = (q @ means.k[:, :, j : j + 1].double().mT) / 4 + torch.tensor(last - first).log()
        weights = torch.softmax(torch.cat([logits[..., rest], mean], -1), -1)
        out = weights @ torch.cat([v[:, :, rest], means.v[:, :, j : j + 1].double()], 2)
        moved = (out - exact).square().sum(-1)
        expected = torch.stack([part.mean(-1) for part in moved.split(16, -1)], -1).sqrt()
        torch.testing.assert_close(errors[..., j].double(), expected, rtol=0.25, atol=1e-4)


def test_it_ranks_better_than_the_estimate_and_than_mass(cases):
    layout = VideoLayout(8, 12, 16)
    tensors = video_qkv(layout, 1, 4, 32, torch.device("cpu"), torch.float32)
    exact = torch.nn.functional.scaled_dot_product_attention(*tensors)
    errors = []
    for method in (
        OracleError(0.15, blocks=(32, 16)),
        Compensated(0.15, blocks=(32, 16)),
        Compensated(0.15, blocks=(32, 16), rank="mass"),
    ):
        plan = method.decide(*tensors, layout, cases.site(), None)
        errors.append(float((run_plan(*tensors, plan).out - exact).norm() / exact.norm()))
    assert errors == sorted(errors)


@pytest.mark.parametrize("exact_at_tangents", [False, True])
def test_density_is_the_one_asked_for(exact_at_tangents, cases):
    tensors = cases.qkv(3, 2, 2, LAYOUT.num_tokens, 16)
    plan = OracleError(0.4, blocks=SMALL, tangents=exact_at_tangents).decide(
        *tensors, LAYOUT, cases.site(), None
    )
    keep = cases.natural_mask(plan, 2, 2).float()
    assert bool((keep.mean((-1, -2)) >= 0.4 - 1e-6).all())
    assert bool((keep.mean((-1, -2)) < 0.4 + 16 * 8 / LAYOUT.num_tokens**2).all())
    assert bool(keep[..., LAYOUT.video_end :].all())
    assert plan.compensate
    assert (plan.tangents is not None) == exact_at_tangents


def test_density_one_is_dense_and_too_little_is_refused(cases):
    tensors = cases.qkv(4, 1, 1, LAYOUT.num_tokens, 16)
    assert OracleError(1.0).decide(*tensors, LAYOUT, cases.site(), None) is None
    with pytest.raises(UsageError, match="too small here"):
        OracleError(0.01, blocks=SMALL).decide(*tensors, LAYOUT, cases.site(), None)
