from dataclasses import replace

import pytest

pytest.importorskip("pydantic")

import vidsparse
from vidsparse.config import SparseConfig, preset_names
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.plan import CallSite
from vidsparse.request import SparseRequest
from vidsparse.schedule import DenseSchedule

SITE = CallSite("transformer", 0, 40, 0, 50, 0.9, 0, 0)


def schedule_of(config):
    return DenseSchedule(config.dense_steps, config.dense_layers, config.dense_above_sigma)


@pytest.mark.parametrize("name", preset_names())
def test_preset_builds_its_method_and_schedule(name):
    config = SparseConfig.load(name)
    method, schedule = config.build()
    assert schedule == schedule_of(config)
    assert config.measured is not None if config.status == "measured" else config.note
    if config.status == "published":
        assert name.startswith(f"{method.name}-")


@pytest.mark.parametrize(
    ("name", "steps", "layers", "dense_steps", "dense_layers"),
    # svg.md 1.5: counts of the published scripts.
    [
        ("svg-wan-t2v-720p", 50, 40, 10, 1),
        ("svg-wan-i2v-720p", 40, 40, 14, 1),
        ("svg-wan-i2v-480p", 40, 40, 8, 1),
        ("svg-hunyuan-720p", 50, 60, 5, 1),
        ("svg-hunyuan-480p", 50, 60, 2, 0),
        ("svg2-wan-t2v-720p", 50, 40, 10, 1),
        ("svg2-wan-i2v-720p", 40, 40, 14, 1),
        ("svg2-wan-i2v-480p", 40, 40, 8, 1),
        ("svg2-hunyuan-720p", 50, 60, 5, 1),
        ("svg2-hunyuan-480p", 50, 60, 2, 0),
    ],
)
def test_published_steps_and_layers_stay_dense(name, steps, layers, dense_steps, dense_layers):
    schedule = schedule_of(SparseConfig.load(name))
    site = replace(SITE, num_steps=steps, num_layers=layers)
    last_step, last_layer = steps - 1, layers - 1
    in_steps = [schedule.reason(replace(site, step=s, layer=last_layer)) for s in range(steps)]
    in_layers = [schedule.reason(replace(site, step=last_step, layer=n)) for n in range(layers)]
    assert [bool(why) for why in in_steps] == [s < dense_steps for s in range(steps)]
    assert [bool(why) for why in in_layers] == [n < dense_layers for n in range(layers)]


@pytest.mark.parametrize(
    ("name", "steps", "shift"), [("draft-wan-t2v-768p", 50, 5), ("draft-hunyuan-768p", 50, 7)]
)
def test_published_gates_keep_fifteen_steps_dense(name, steps, shift):
    # draft G1.
    schedule = schedule_of(SparseConfig.load(name))
    even = [1 - step / steps for step in range(steps)]
    sigmas = [shift * sigma / (1 + (shift - 1) * sigma) for sigma in even]
    why = [schedule.reason(replace(SITE, step=s, sigma=x, layer=39)) for s, x in enumerate(sigmas)]
    assert sum(reason is not None for reason in why) == 15


def test_draft_density_counts_the_text_that_the_original_does_not():
    layout = VideoLayout(33, 48, 80, text_after=256)
    text = 1 - (layout.video_tokens / layout.num_tokens) ** 2
    density = SparseConfig.load("draft-hunyuan-768p").parameters["density"]
    assert density == pytest.approx(0.1 * (1 - text) + text, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("adaspa-hunyuan-720p", VideoLayout(33, 45, 80, text_after=256)),
        ("adaspa-cogvideox-1.5", VideoLayout(21, 48, 85, text_before=226)),
    ],
)
def test_adaspa_presets_search_as_in_the_paper(name, layout):
    config = SparseConfig.load(name)
    method, schedule = config.build()
    assert method.heads == "adaptive"
    first, later, _ = method.phases(50, 10)
    assert (first.steps, later.steps) == ((10,), (30,))
    assert [schedule.reason(replace(SITE, step=s)) for s in (9, 10)] == ["dense steps", None]
    text = 1 - (layout.video_tokens / layout.num_tokens) ** 2
    assert method.density == pytest.approx(0.2 * (1 - text) + text, abs=5e-4)


@pytest.mark.parametrize(
    ("method", "parameters", "density", "message"),
    [
        ("svg2", {"top_p": 0.9}, 0.3, r"density=0\.3 has no effect .* top_p=0\.9"),
        ("draft", {"budget": "threshold"}, 0.3, "budget='threshold'; give one of the two"),
        ("svg2", {"top_p": 0.9}, None, None),
        ("svg2", {}, 0.3, None),
    ],
)
def test_a_density_without_effect_is_refused(method, parameters, density, message):
    request = SparseRequest("x", method, density=density, parameters=parameters)
    if message is None:
        request.check()
        return
    with pytest.raises(UsageError, match=message):
        request.check()
    with pytest.raises(UsageError, match=message):
        vidsparse.enable(None, method, density=density, parameters=parameters)


def test_a_density_over_a_preset_that_ignores_it_is_refused_until_its_rule_is_off():
    request = SparseRequest("x", None, density=0.3, preset="svg2-wan-t2v-720p")
    with pytest.raises(UsageError, match="has no effect"):
        request.check()
    replace(request, parameters={"top_p": None, "min_ratio": 0.0}).check()
