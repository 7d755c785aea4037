import pytest
import torch

from vidsparse.kernels.block_mask import BlockMask
from vidsparse.layout import VideoLayout
from vidsparse.methods.draft import Draft
from vidsparse.methods.oracle import Oracle
from vidsparse.methods.random_blocks import RandomBlocks
from vidsparse.methods.svg import SVG
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.profiling.recall import oracle_recall, recall

LAYOUT = VideoLayout(4, 7, 9, text_after=5)
SITE = CallSite("transformer", 0, 8, 3, 10, 0.5, 0, 0)
SMALL = (16, 16)


@pytest.fixture
def qk():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, LAYOUT.num_tokens, 16, generator=generator) for _ in "qk"]


def slow_recall(q, k, plan):
    weights = torch.softmax(q.double() @ k.double().mT / 4, -1)
    for dim, order in ((2, plan.q_order), (3, plan.kv_order)):
        if order is not None:
            places = order.long().expand(2, 3, -1)
            places = places[..., :, None] if dim == 2 else places[..., None, :]
            weights = weights.gather(dim, places.expand(weights.shape))
    return (weights * plan.mask.token_mask()).sum((-1, -2)) / q.shape[2]


@pytest.mark.parametrize(
    "method",
    [
        SVG(0.5, blocks=SMALL),
        SVG(0.5, heads="temporal", blocks=SMALL),
        RandomBlocks(0.3, blocks=(32, 16)),
        Draft(0.3, block=12, tiling="windows"),
        Draft(0.3, block=16, tiling="strips"),
    ],
)
def test_recall_is_the_mass_under_the_mask(method, qk):
    q, k = qk
    plan = method.plan(q, k, k, LAYOUT, SITE, method.init_state())
    got = recall(q, k, plan)
    assert got.shape == (2, 3)
    torch.testing.assert_close(got.double(), slow_recall(q, k, plan), atol=1e-5, rtol=1e-5)


def test_a_full_mask_recalls_everything(qk):
    S = LAYOUT.num_tokens
    full = AttentionPlan(BlockMask.full(block_q=16, block_kv=16, seq_q=S, seq_kv=S))
    torch.testing.assert_close(recall(*qk, full), torch.ones(2, 3), atol=1e-5, rtol=0)


def test_no_mask_of_the_same_blocks_beats_the_oracle(qk):
    q, k = qk
    best = oracle_recall(q, k, 0.3, 16, 16)
    for seed in range(4):
        plan = RandomBlocks(0.3, seed=seed, blocks=SMALL).plan(q, k, k, LAYOUT, SITE, None)
        assert bool((recall(q, k, plan) < best).all())
    layout = VideoLayout(1, 1, LAYOUT.num_tokens)
    plan = Oracle(0.3, blocks=SMALL).plan(q, k, k, layout, SITE, None)
    torch.testing.assert_close(recall(q, k, plan), best, atol=1e-6, rtol=0)
    assert bool((oracle_recall(q, k, 0.5, 16, 16) > best).all())
