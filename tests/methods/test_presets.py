import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pydantic")

import torch

import vidsparse
from vidsparse.config import SparseConfig, preset_names
from vidsparse.errors import UsageError
from vidsparse.fingerprint import differences, model_of
from vidsparse.layout import VideoLayout
from vidsparse.models import info, path
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
        ("svg-cosmos-14b", 35, 36, 10, 1),
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


TINY = [name for name in preset_names() if name.startswith("tiny-")]
SWEPT = [name for name in TINY if "profiling/results/" in (SparseConfig.load(name).note or "")]
TUNED = [name for name in TINY if name not in SWEPT]
RESULTS = Path(__file__).parents[2] / "profiling" / "results"


def test_there_are_measured_presets_for_the_bundled_model():
    assert SWEPT
    assert TUNED
    assert all(SparseConfig.load(name).status == "measured" for name in TINY)


@pytest.mark.parametrize("name", TINY)
def test_measured_presets_are_for_the_bundled_model(name):
    diffusers = pytest.importorskip("diffusers")
    config = diffusers.WanTransformer3DModel.load_config(path("tiny"), subfolder="transformer")
    with torch.device("meta"):
        transformer = diffusers.WanTransformer3DModel.from_config(config)
    assert not differences(SparseConfig.load(name).model, model_of(transformer))


@pytest.mark.parametrize("name", TUNED)
def test_tuned_presets_say_what_the_results_say(name):
    config = SparseConfig.load(name)
    found = config.measured
    rows = [
        row
        for file in RESULTS.glob("tune-*.json")
        for row in json.loads(file.read_text())["rows"]
        if row["case"] == "tuned" and row["setting"] in config.note
    ]
    (row,) = rows
    assert row["target"] in config.note
    assert row["meets"]
    assert found.psnr >= found.target["min_psnr"]
    for key in ("psnr", "speedup", "predicted_speedup", "density", "overall_density"):
        assert getattr(found, key) == pytest.approx(row[key], abs=1e-3)
    assert found.psnr_interval == pytest.approx([row["psnr_low"], row["psnr_high"]], abs=1e-3)


@pytest.mark.parametrize("name", SWEPT)
def test_measured_presets_say_what_the_results_say(name):
    config = SparseConfig.load(name)
    file = RESULTS / re.search(r"profiling/results/(\S+\.json)", config.note)[1]
    grid = next(key for key, grid in info("tiny").grids.items() if f"grid {key}," in config.note)
    size = info("tiny").grids[grid]
    found = config.measured
    assert found.size == [size.width, size.height, size.num_frames]
    assert found.tokens == size.tokens
    rows = [
        row
        for row in json.loads(file.read_text())["rows"]
        if row["grid"] == grid
        and row["requested_density"] == config.parameters["density"]
        and config.note.split(": ")[1].split(" at ")[0] == row["method"]
    ]
    (row,) = rows
    assert (found.psnr, found.clips) == (row["psnr"], row["clips"])
    assert (found.floor_psnr, found.density) == (row["floor_psnr"], row["density"])
    low, high = found.psnr_interval
    assert min(row["psnr_per_clip"]) < low < found.psnr < high < max(row["psnr_per_clip"])


@pytest.mark.parametrize("name", SWEPT)
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_measured_presets_keep_a_fifth_of_any_number_of_steps_dense(name, steps):
    # The bundled model's scheduler shifts by 4.
    schedule = schedule_of(SparseConfig.load(name))
    even = [1 - step / steps for step in range(steps)]
    sigmas = [4 * sigma / (1 + 3 * sigma) for sigma in even]
    why = [schedule.reason(replace(SITE, step=s, sigma=x)) for s, x in enumerate(sigmas)]
    assert [reason is not None for reason in why] == [s < steps // 5 for s in range(steps)]
