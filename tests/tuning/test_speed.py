import pytest

from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.preset_parts import Band
from vidsparse.tuning.candidates import Candidate, Variant, variants_of, warm_up_sigma
from vidsparse.tuning.speed import (
    SHORT_STEPS,
    SpeedModel,
    StepTimes,
    step_densities,
    step_kinds,
    time_variant,
    variant_key,
)

SIGMAS = [0.95, 0.85, 0.7, 0.5, 0.2]
SVG = Variant("svg", {"rows": 32}, (0.5, 0.3, 0.1))


def model():
    made = SpeedModel(dense_seconds=10.0, dense_step=1.0, sigmas=SIGMAS)
    # A sparse step takes 0.3 and the density; the first one 0.5 more.
    run = lambda config, steps: [  # noqa: E731
        0.3 + config.parameters["density"] + (0.5 if i == 0 else 0) for i in range(steps)
    ]
    made.variants[variant_key(SVG.config(0.5, None))] = time_variant(SVG, run, (0.2, 0.4))
    return made


def candidate(density, above=None, **changes):
    return Candidate("x", SVG.config(density, above).model_copy(update=changes))


@pytest.mark.parametrize(("above", "sparse"), [(None, 5), (0.9, 4), (0.6, 2), (0.1, 0)])
def test_predicted_time_is_that_of_the_steps(above, sparse):
    expected = 2.0 * (5 - sparse + sparse * (0.3 + 0.1) + (0.5 if sparse else 0))
    assert model().predict(candidate(0.1, above)) == pytest.approx(expected)


def test_bands_are_predicted_step_by_step():
    bands = [Band(above_sigma=0.6, layers=[0.2, 0.6]), Band(above_sigma=0.0, density=0.1)]
    banded = candidate(0.3, 0.9, bands=bands)
    assert step_densities(banded.config, SIGMAS[1:]) == [0.4, 0.4, 0.1, 0.1]
    expected = 2.0 * (1 + 4 * 0.3 + 2 * 0.4 + 2 * 0.1 + 0.5)
    assert model().predict(banded) == pytest.approx(expected)


def test_measured_clips_correct_later_predictions_of_the_same_variant():
    made = model()
    raw = made.predict(candidate(0.3))
    made.learn(candidate(0.3), raw * 1.2)
    assert made.predict(candidate(0.1)) == pytest.approx(made.predict_raw(candidate(0.1)) * 1.2)
    assert made.predict_raw(candidate(0.3)) == pytest.approx(raw)


def test_unknown_variants_and_caches_are_not_predicted():
    other = Candidate("x", SparseConfig(method="svg", parameters={"density": 0.3}))
    assert model().predict(other) is None
    cached = candidate(0.3, cache={"name": "first_block"})
    assert model().predict(cached) is None


def test_density_for_a_time_is_the_predictions_inverse():
    made = model()
    density = made.density_for(SVG, made.predict(candidate(0.25, 0.9)), 0.9)
    assert density == pytest.approx(0.25, abs=1e-3)
    assert made.density_for(SVG, 0.0, None) == pytest.approx(0.1, abs=1e-3)
    assert made.density_for(SVG, 99.0, None) == pytest.approx(0.5, abs=1e-3)


def test_short_runs_are_short():
    assert SHORT_STEPS < 10


@pytest.mark.parametrize(
    ("share", "above"), [(0.0, None), (0.2, 0.875), (0.4, 0.7375), (0.8, 0.275), (1.0, 0.05)]
)
def test_warm_up_as_noise_lies_between_two_steps(share, above):
    assert warm_up_sigma(SIGMAS, share) == above


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_warm_up_as_noise_keeps_its_share_at_other_step_counts(steps):
    def schedule(count):
        even = [1 - i / count for i in range(count)]
        return [4 * s / (1 + 3 * s) for s in even]

    above = warm_up_sigma(schedule(20), 0.2)
    assert sum(sigma > above for sigma in schedule(steps)) == round(0.2 * steps)


def test_variants_are_defaults_and_single_changes():
    found = variants_of(["svg", "draft"])
    assert {v.method for v in found} == {"svg", "draft"}
    assert [v.label for v in found if not v.parameters] == ["svg", "draft"]
    assert all(len(v.parameters) <= 1 for v in found)
    assert all(list(v.densities) == sorted(v.densities, reverse=True) for v in found)


def test_all_methods_are_searched_but_no_control():
    names = {variant.method for variant in variants_of()}
    assert {"svg", "svg2", "draft", "adaspa", "lite"} <= names
    assert names.isdisjoint({"dense", "random", "oracle", "oracle-error"})
    with pytest.raises(UsageError, match="unknown method"):
        variants_of(["nope"])


def test_searching_steps_are_timed_and_counted_apart():
    adaspa = Variant("adaspa", {"search_at": (0.2, 0.6)}, (0.5, 0.3, 0.1))
    kinds = step_kinds(adaspa.build(0.3), 6, 0)
    assert kinds.count("reuse") >= 3
    cost = {"first search": 1.2, "later search": 1.5, "reuse": 0.4}
    run = lambda config, steps: [cost[kind] for kind in kinds]  # noqa: E731
    times = time_variant(adaspa, run, (0.2, 0.4))
    assert StepTimes.from_dict(times.as_dict()) == times
    made = SpeedModel(dense_seconds=20.0, dense_step=1.0, sigmas=[1 - i / 20 for i in range(20)])
    made.variants[variant_key(adaspa.config(0.5, None))] = times
    long = step_kinds(adaspa.build(0.3), 20, 0)
    expected = sum(cost[kind] for kind in long)
    assert made.predict(Candidate("x", adaspa.config(0.3, None))) == pytest.approx(expected)
    # A share of all steps searches, so a short run alone would say too much.
    assert expected / 20 < sum(cost[kind] for kind in kinds) / 6


def test_a_short_run_that_other_work_disturbed_is_timed_again():
    runs = []

    def run(config, steps):
        runs.append(config.parameters["density"])
        # Something else had the machine in the first run of all.
        slow = 9.0 if len(runs) == 1 else 0.0
        return [0.3 + config.parameters["density"] + slow] * steps

    times = time_variant(SVG, run, (0.2, 0.4))
    assert runs == [0.2, 0.4, 0.2, 0.4]
    assert times.step(0.2) == pytest.approx(0.5)
    assert times.step(0.4) == pytest.approx(0.7)


def test_a_run_as_expected_is_timed_once():
    runs = []

    def run(config, steps):
        runs.append(steps)
        return [0.3 + config.parameters["density"]] * steps

    time_variant(SVG, run, (0.2, 0.4))
    assert runs == [SHORT_STEPS] * 2
