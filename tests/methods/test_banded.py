from dataclasses import replace

import pytest
import torch

from vidsparse.attention import SparseAttention
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.methods.banded import Banded
from vidsparse.methods.compensated import Compensated
from vidsparse.methods.random_blocks import RandomBlocks
from vidsparse.methods.svg2 import Svg2
from vidsparse.plan import CallSite
from vidsparse.preset_parts import Band
from vidsparse.schedule import DenseSchedule

LAYOUT = VideoLayout(4, 16, 16)
SITE = CallSite("transformer", 0, 2, 3, 10, 0.7, 0, 0)
BANDS = (
    Band(above_sigma=0.9, density=1.0),
    Band(above_sigma=0.5, layers=[0.5, 0.25]),
    Band(above_sigma=0.0, density=0.2),
)


@pytest.fixture(scope="module")
def tokens():
    make = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 2, LAYOUT.num_tokens, 16, generator=make) for _ in range(3))


@pytest.mark.parametrize(
    ("sigma", "layer", "density"),
    [(0.95, 0, 1), (0.9, 0, 0.5), (0.7, 1, 0.25), (0.5, 1, 0.2), (0.0, 0, 0.2)],
)
def test_density_follows_noise_and_layer(sigma, layer, density):
    banded = Banded.of(RandomBlocks(), BANDS)
    assert banded.density_at(replace(SITE, sigma=sigma, layer=layer)) == density


def test_plan_is_the_inner_methods_at_that_density(tokens):
    banded, site = Banded.of(RandomBlocks(), BANDS), replace(SITE, layer=1)
    plan = banded.plan(*tokens, LAYOUT, site, banded.init_state())
    expected = RandomBlocks(0.25).plan(*tokens, LAYOUT, site, None)
    assert torch.equal(plan.mask.to_dense(), expected.mask.to_dense())


def test_a_methods_own_share_for_the_first_layer_is_not_taken_twice(tokens):
    inner = Compensated(blocks=(32, 16))
    bands = (
        Band(above_sigma=0.5, layers=[0.25, *[0.5] * 7]),
        Band(above_sigma=0.0, density=0.3),
    )
    banded = Banded.of(inner, bands)
    site = replace(SITE, num_layers=8)
    for layer, density in ((0, 0.25), (1, 0.5)):
        plan = banded.plan(*tokens, LAYOUT, replace(site, layer=layer), banded.init_state())
        assert float(plan.density()) == pytest.approx(density, abs=0.02)
    # One density for all layers is shared out as ever.
    own = banded.plan(*tokens, LAYOUT, replace(site, sigma=0.1), banded.init_state())
    alone = replace(inner, density=0.3).plan(*tokens, LAYOUT, site, inner.init_state())
    assert torch.equal(own.mask.to_dense(), alone.mask.to_dense())


def test_anchors_serve_the_steps_after_them(tokens):
    banded = Banded.of(
        Compensated(0.3, blocks=(32, 16), anchor_every=3), (Band(above_sigma=0.0, density=0.3),)
    )
    attention = SparseAttention(banded, DenseSchedule(dense_steps=0))
    for step in range(6):
        attention(*tokens, layout=LAYOUT, site=replace(SITE, step=step))
    assert attention.recorder.dense["anchor"] == 2


def test_a_kept_plan_of_another_density_is_not_reused(tokens):
    inner = Svg2(q_clusters=4, k_clusters=16, refresh_every=9)
    bands = (Band(above_sigma=0.5, density=0.6), Band(above_sigma=0.0, density=0.2))
    banded = Banded.of(inner, bands)
    state = banded.init_state()
    high, low, same = (
        float(banded.plan(*tokens, LAYOUT, site, state).density())
        for site in (SITE, replace(SITE, step=4, sigma=0.4), replace(SITE, step=5, sigma=0.4))
    )
    assert low < 0.4 < high
    assert same == low


def test_density_one_is_dense(tokens):
    assert (
        Banded.of(RandomBlocks(), BANDS).plan(*tokens, LAYOUT, replace(SITE, sigma=1.0), None)
        is None
    )


def test_noise_level_must_be_known():
    with pytest.raises(UsageError, match="needs noise levels"):
        Banded.of(RandomBlocks(), BANDS).density_at(replace(SITE, sigma=None))


def test_another_number_of_layers_is_refused():
    with pytest.raises(UsageError, match="densities for 2 layers, but transformer has 30"):
        Banded.of(RandomBlocks(), BANDS).density_at(replace(SITE, num_layers=30))


def test_a_method_that_ignores_densities_is_refused():
    with pytest.raises(UsageError, match="has no effect"):
        Banded.of(Svg2(top_p=0.9), BANDS)


def test_states_are_the_inner_methods():
    inner = Svg2(share_branches=True)
    banded = Banded.of(inner, BANDS)
    assert banded.state_key(SITE) == inner.state_key(SITE)
    assert type(banded.init_state()) is type(inner.init_state())


def test_summaries_name_the_inner_method():
    assert Banded.of(RandomBlocks(), BANDS).name == "random in bands"
    assert Banded.name == "banded"
