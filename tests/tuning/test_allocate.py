from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.tuning.allocate import allocate, layer_bands
from vidsparse.tuning.errors import OutputError

DENSITIES = (0.1, 0.2, 0.3, 0.5)


def best_of_all(cells, weights, mean):
    """The least summed error of every choice within the budget."""
    choices = product(*(cell.items() for cell in cells))
    budget = mean * sum(weights) + 1e-9
    return min(
        sum(w * error for w, (_, error) in zip(weights, choice, strict=True))
        for choice in choices
        if sum(w * density for w, (density, _) in zip(weights, choice, strict=True)) <= budget
    )


def test_layers_whose_error_falls_faster_get_more():
    steep = {density: 1.0 / density for density in DENSITIES}
    flat = {density: 0.1 / density for density in DENSITIES}
    assert allocate([steep, flat], [1, 1], 0.3) == [0.5, 0.1]


def test_equal_cells_share_equally():
    cell = {density: 1.0 / density for density in DENSITIES}
    assert allocate([cell] * 3, [1, 1, 1], 0.2) == [0.2, 0.2, 0.2]


def test_cells_that_need_nothing_get_the_least():
    assert allocate([{0.1: 0.5, 0.5: 0.5}, {0.1: 0.5, 0.5: 0.1}], [1, 1], 0.5) == [0.1, 0.5]


def test_budget_below_the_least_is_refused():
    with pytest.raises(ValueError, match="below the least densities"):
        allocate([{0.2: 1.0}], [1], 0.1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.2, 3)), min_size=1, max_size=4),
    st.floats(0.1, 0.5),
    st.lists(st.integers(1, 5), min_size=4, max_size=4),
)
def test_no_choice_within_budget_is_much_better(curves, mean, counts):
    cells = [{d: a * d**-b for d in DENSITIES} for a, b in curves]
    weights = counts[: len(cells)]
    chosen = allocate(cells, weights, mean)
    spent = sum(w * d for w, d in zip(weights, chosen, strict=True))
    assert spent <= mean * sum(weights) + 1e-6
    error = sum(w * cell[d] for w, cell, d in zip(weights, cells, chosen, strict=True))
    # Greedy on convex curves is within one upgrade of the best: as good as with that much less.
    largest = 0.2 * max(weights)
    tighter = mean - largest / sum(weights)
    if tighter >= 0.1:
        assert error <= best_of_all(cells, weights, tighter) + 1e-9


def errors():
    rows = []
    for layer, sigma, density in product((0, 1, 2), (0.9, 0.6, 0.2), (0.1, 0.3, 0.5)):
        rows.append(OutputError("x", density, layer, 0, sigma, (layer + 1) * sigma / density))
    return rows


SIGMAS = [0.9, 0.8, 0.7, 0.6, 0.4, 0.2, 0.1]


def test_layers_alone_make_one_band():
    (band,) = layer_bands(errors(), SIGMAS, 0.25, by_noise=False)
    assert band.above_sigma == 0
    assert band.layers == sorted(band.layers)
    assert band.mean() <= 0.25
    assert band.layers[-1] > band.layers[0]


def test_noise_levels_make_bands_that_keep_the_mean():
    bands = layer_bands(errors(), SIGMAS, 0.3, by_noise=True)
    assert [band.above_sigma for band in bands] == [0.75, 0.4, 0.0]
    ranges = ((0.75, 2), (0.4, 0.75), (0, 0.4))
    steps = [sum(low < s <= high for s in SIGMAS) for low, high in ranges]
    mean = sum(n * band.mean() for n, band in zip(steps, bands, strict=True)) / len(SIGMAS)
    assert 0.2 < mean <= 0.3 + 1e-9
    # More noise had more error here.
    assert bands[0].mean() > bands[-1].mean()


def test_steps_that_stay_dense_get_no_band():
    bands = layer_bands(errors(), [0.6, 0.4, 0.2], 0.3, by_noise=True)
    assert len(bands) == 2
