from dataclasses import replace

import pytest
import torch

from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.methods.banded import Banded
from vidsparse.methods.random_blocks import RandomBlocks
from vidsparse.methods.svg2 import Svg2
from vidsparse.plan import CallSite
from vidsparse.preset_parts import Band

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
