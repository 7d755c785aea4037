import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vidsparse.cli import app
from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.pipelines import testing
from vidsparse.tuning.cost import Cost
from vidsparse.tuning.journal import Journal
from vidsparse.tuning.prompts import GENERAL, scenes_for, scenes_to_measure

SIZE = ("--height", "192", "--width", "192", "--num-frames", "9", "--steps", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    testing.wan(head_dim=16, layers=1).pipe.save_pretrained(folder)
    return folder


def run(*arguments: object) -> str:
    words = ["tune", "--device", "cpu", "--dtype", "float32", *map(str, arguments)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what quality is needed"),
        (("--min-psnr", 28, "--method", "svgg"), r"unknown method 'svgg'; did you mean 'svg'\?"),
        (("--min-psnr", 28, "--clips", 0), "give at least 1 of each"),
        (("--min-psnr", 28, "--floor", "x"), "unknown --floor 'x'"),
        (("--min-psnr", 28, "--prompts", "/nowhere/p.txt"), "cannot read prompts from"),
        (("--min-psnr", 28, "--model", "nope"), "unknown model 'nope'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(arguments, message):
    with pytest.raises(UsageError, match=message):
        run(*arguments)


def test_empty_or_short_prompt_files_are_refused(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n  \n# none\n")
    with pytest.raises(UsageError, match="holds no prompt; write one a line"):
        scenes_for("x", file, tuning=1, held_out=1)
    file.write_text("# pets\na cat\na dog\na cat\n")
    with pytest.raises(UsageError, match="2 different prompts, but 2 to tune on and 1 held out"):
        scenes_for("x", file, tuning=2, held_out=1)


@pytest.mark.parametrize("name", ["tiny", "someone/model"])
def test_held_out_scenes_share_no_prompt_and_no_seed(name):
    tuning, held_out = scenes_for(name, None, tuning=3, held_out=6, seed=5)
    assert (len(tuning), len(held_out)) == (3, 6)
    everything = (*tuning, *held_out)
    assert len({scene.prompt for scene in everything}) == 9
    assert [scene.seed for scene in everything] == list(range(5, 14))


def test_general_prompts_differ():
    assert len(set(GENERAL)) == len(GENERAL) >= 10


def test_dry_run_predicts_and_writes_nothing(model, tmp_path):
    out = tmp_path / "tune"
    found = json.loads(
        run("--model", model, *SIZE, "--min-psnr", 28, "--dry-run", "--json", "--out", out)
    )
    assert 0 < found["least"] < found["most"]
    assert found["least_seconds"] == pytest.approx(found["least"] * found["dense_seconds"])
    assert not out.exists()


def test_dry_run_counts_the_caches_that_are_tried(model, tmp_path, monkeypatch):
    options = ("--model", model, *SIZE, "--min-psnr", 28, "--dry-run", "--json", "--out", tmp_path)
    told = []

    def note(*_, caches, **__):
        told.append(caches)
        return Cost(1.0, 1.0, 1.0, 1)

    monkeypatch.setattr("vidsparse.tuning.cost.predict_cost", note)
    monkeypatch.setattr("vidsparse.tuning.settings.CACHES", ("first_block", "taylorseer", "pab"))
    run(*options)
    run(*options, "--no-caches")
    assert told == [3, 0]


def test_tune_writes_a_preset_for_this_model(model, tmp_path, monkeypatch):
    monkeypatch.setattr("vidsparse.tuning.report.commit", lambda: "x")
    out = tmp_path / "tune"
    common = ("--model", model, *SIZE, "--clips", 1, "--held-out", 1, "--method", "draft")
    options = (*common, "--no-caches", "--floor", "none", "--out", out, "--json")
    first = json.loads(run("--min-psnr", 30, *options))
    assert first["target"] == "PSNR >= 30 dB"
    preset = SparseConfig.load(out / "preset.toml")
    assert preset.model.transformers["transformer"]["num_layers"] == 1
    # Random weights on a CPU: either answer is right, as long as it says what was measured.
    if preset.method == "dense":
        assert "don't sparsify" in first["verdict"]
    else:
        assert preset.status == "measured"
        assert preset.measured.psnr >= 30
        assert preset.measured.speedup > 1
    again = json.loads(run("--min-psnr", 30, *options))
    assert again["generations"] == 0
    assert again["outcomes"] == first["outcomes"]
    with pytest.raises(UsageError, match="holds a search with another target"):
        run("--min-psnr", 31, *options)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"versions": {"vidsparse": "0"}}, "versions"), ({"commit": "another"}, "commit")],
)
def test_results_of_another_version_are_refused(model, tmp_path, monkeypatch, change, named):
    options = ("--model", model, *SIZE, "--min-psnr", 30, "--method", "draft", "--out", tmp_path)
    asked: list[dict[str, object]] = []

    def stop(folder, header):
        asked.append(header)
        raise UsageError("enough")

    monkeypatch.setattr("vidsparse.tuning.journal.Journal", stop)
    with pytest.raises(UsageError, match="enough"):
        run(*options, "--floor", "none")
    (header,) = asked
    Journal(tmp_path, header)
    with pytest.raises(UsageError, match=f"another {named}; choose"):
        Journal(tmp_path, header | change)


def test_scenes_tuned_on_and_held_out_are_told_apart(model, tmp_path, monkeypatch):
    monkeypatch.setattr("vidsparse.tuning.report.commit", lambda: "x")
    monkeypatch.setattr("vidsparse.tuning.tune.Search.run", lambda search: 1 / 0)
    options = ("--model", model, *SIZE, "--min-psnr", 30, "--floor", "none", "--out", tmp_path)
    with pytest.raises(ZeroDivisionError):
        run(*options, "--clips", 2, "--held-out", 4)
    with pytest.raises(UsageError, match="another held_out, tuning; choose another --out"):
        run(*options, "--clips", 3, "--held-out", 3)


def test_a_file_of_prompts_is_measured_whole(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# pets\na cat\na dog\na fish\n")
    found = scenes_to_measure("x", file, seed=7)
    assert found == (Scene("a cat", 7), Scene("a dog", 8), Scene("a fish", 9))
    assert scenes_to_measure("x", file, clips=1) == (Scene("a cat", 0),)
    with pytest.raises(UsageError, match="3 different prompts to measure on, but --clips 4") as e:
        scenes_to_measure("x", file, clips=4)
    assert "--held-out" not in str(e.value)
    with pytest.raises(UsageError, match="--clips 0 must be at least 1"):
        scenes_to_measure("x", file, clips=0)


def test_built_in_prompts_are_measured_beside_those_tuned_on():
    _, held_out = scenes_for("x", None, tuning=2, held_out=4, seed=5)
    assert scenes_to_measure("x", None, seed=5) == held_out
    with pytest.raises(UsageError, match="the built-in list has 10 different prompts to measure"):
        scenes_to_measure("x", None, clips=11)


def measure(*arguments: object) -> str:
    words = ["preset", "measure", "--device", "cpu", "--dtype", "float32", "--clips", "1"]
    done = CliRunner().invoke(app, [*words, *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_measuring_a_preset_says_whether_it_holds(model, tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text('method = "draft"\ndense_steps = 1\n[parameters]\ndensity = 0.5\n')
    found = json.loads(measure(preset, "--model", model, *SIZE, "--json"))
    assert found["sampling"]["num_inference_steps"] == 4
    assert found["psnr"] > 20
    assert found["speedup"] > 0
    assert found["meets"] is None


def test_measuring_a_preset_of_another_model_is_refused(model):
    with pytest.raises(UsageError, match="num_layers is 40 in the preset and 1 here"):
        measure("draft-wan-t2v-768p", "--model", model, *SIZE)
