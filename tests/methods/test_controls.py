import pytest
import torch

from vidsparse.attention import run_plan
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import available_methods, build_method
from vidsparse.methods.dense import Dense
from vidsparse.methods.oracle import Oracle
from vidsparse.methods.random_blocks import RandomBlocks
from vidsparse.plan import CallSite

LAYOUT = VideoLayout(5, 6, 8, text_after=13)
SMALL = (16, 16)


def test_controls_are_known_by_name():
    assert {"dense", "random", "oracle", "svg"} <= set(available_methods())


@pytest.mark.parametrize("name", ["dense", "random", "oracle"])
def test_density_one_is_dense(name, cases):
    method = build_method(name, {"density": 1.0})
    q, k, v = cases.qkv(0, 1, 2, LAYOUT.num_tokens, 16)
    assert method.plan(q, k, v, LAYOUT, cases.site(), method.init_state()) is None


def test_dense_is_dense_by_default():
    assert Dense().density == 1


@pytest.mark.parametrize(
    "method",
    [
        RandomBlocks(0.4, blocks=SMALL),
        RandomBlocks(0.4, blocks=(32, 16)),
        Oracle(0.4, blocks=SMALL),
        Oracle(0.4, order="tile", blocks=SMALL),
    ],
)
def test_executed_density_is_the_one_asked_for(method, cases):
    q, k, v = cases.qkv(1, 2, 3, LAYOUT.num_tokens, 16)
    plan = method.plan(q, k, v, LAYOUT, cases.site(), None)
    keep = cases.natural_mask(plan, 2, 3)
    S = LAYOUT.num_tokens
    block = 32 * 16 / S**2
    assert bool((keep.float().mean((-1, -2)) >= 0.4 - 1e-6).all())
    assert bool((keep.float().mean((-1, -2)) < 0.4 + block).all())
    assert float(plan.density()) == pytest.approx(float(keep.float().mean()), abs=1e-6)
    assert bool(keep[..., LAYOUT.video_end :].all())
    assert bool(keep[..., LAYOUT.video_end :, :].all())
    expected = cases.masked_attention(q, k, v, keep)
    out = run_plan(q, k, v, plan).out
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_random_depends_on_site_and_seed_only(cases):
    q, k, v = cases.qkv(2, 1, 2, LAYOUT.num_tokens, 16)
    before = torch.get_rng_state()

    def drawn(seed=0, **where):
        method = RandomBlocks(0.4, seed=seed, blocks=SMALL)
        return method.plan(q, k, v, LAYOUT, cases.site(**where), None).mask.to_dense()

    assert torch.equal(drawn(), drawn())
    assert torch.equal(drawn(), drawn(generation=1))
    for other in ({"step": 6}, {"layer": 4}, {"branch": 1}, {"seed": 1}):
        assert not torch.equal(drawn(), drawn(**other))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(drawn()[:, 0], drawn()[:, 1])


@pytest.mark.parametrize("order", ["raster", "tile"])
def test_oracle_keeps_more_mass_than_any_random_choice(order, cases):
    q, k, v = cases.qkv(3, 1, 2, LAYOUT.num_tokens, 16)
    weights = torch.softmax(q @ k.mT / 4, -1)

    def mass(method):
        plan = method.plan(q, k, v, LAYOUT, cases.site(), None)
        return (weights * cases.natural_mask(plan, 1, 2)).sum((-1, -2))

    best = mass(Oracle(0.4, order=order, blocks=SMALL))
    for seed in range(5):
        assert bool((best > mass(RandomBlocks(0.4, seed=seed, blocks=SMALL))).all())


def test_oracle_of_a_peaked_map_finds_its_blocks(cases):
    layout = VideoLayout(4, 4, 4)
    target = torch.tensor([2, 0, 3, 1])
    codes = torch.eye(4).repeat_interleave(16, 0)
    k = 20 * codes[None, None]
    q = 20 * torch.eye(4)[target.repeat_interleave(16)][None, None]
    plan = Oracle(0.25, blocks=SMALL).plan(q, k, k, layout, cases.site(), None)
    assert plan.mask.to_dense()[0, 0].int().argmax(-1).tolist() == target.tolist()


def test_a_density_below_the_text_is_refused(cases):
    q, k, v = cases.qkv(5, 1, 1, LAYOUT.num_tokens, 16)
    for method in (RandomBlocks(0.05, blocks=SMALL), Oracle(0.05, blocks=SMALL)):
        with pytest.raises(UsageError, match="at least 0"):
            method.plan(q, k, v, LAYOUT, cases.site(), None)


def test_unknown_order_is_refused():
    with pytest.raises(UsageError, match="'raster' or 'tile'"):
        Oracle(order="spiral")


def test_the_row_budget_gives_every_query_block_of_the_oracle_the_same_share():
    layout = VideoLayout(4, 16, 16)
    q, k, v = torch.randn(3, 1, 2, layout.num_tokens, 16).unbind(0)
    site = CallSite("transformer", 0, 8, 3, 10, 0.5, 0, 0)
    spread = {}
    for budget in ("flat", "row"):
        plan = build_method("oracle", {"density": 0.25, "budget": budget}).plan(
            q, k * 4, v, layout, site, None
        )
        kept = plan.mask.to_dense().sum(-1)
        spread[budget] = int(kept.max() - kept.min())
    assert spread["row"] <= 1 < spread["flat"]
    with pytest.raises(UsageError, match="'flat' or 'row'"):
        build_method("oracle", {"budget": "best"})
