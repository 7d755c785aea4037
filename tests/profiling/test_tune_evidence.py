import json
import sys
from pathlib import Path

import pytest

from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.generate import Sampling
from vidsparse.pipelines import testing
from vidsparse.preset_parts import ModelId
from vidsparse.profiling.tune_evidence import (
    Place,
    elsewhere_rows,
    main,
    resume_row,
    tune_rows,
)
from vidsparse.tuning.journal import Journal
from vidsparse.tuning.report import finish
from vidsparse.tuning.settings import TuneSettings
from vidsparse.tuning.target import Target
from vidsparse.tuning.tune import Search

sys.path.insert(0, str(Path(__file__).parents[1] / "tuning"))
from fake_lab import FakeLab

METHODS = ("svg", "draft")
SCENES = (Scene("a", 0), Scene("b", 1))
HELD_OUT = (Scene("c", 100), Scene("d", 101), Scene("e", 102))
SAMPLING = {"height": 192, "width": 192, "num_frames": 61, "num_inference_steps": 20}
FACTS = {"device": "a device", "dtype": "float32"}


def tuned(folder: Path | None, *, target: float = 25, gap: float = 0.0) -> dict:
    settings = TuneSettings(Target(min_psnr=target), SCENES, METHODS, caches=())
    search = Search(FakeLab(gap=gap), Journal(folder, {}), settings)
    search.run()
    made = finish(search, HELD_OUT, ModelId(transformers={}), FACTS, defaults=True)
    if folder is not None:
        made.preset.save(folder / "preset.toml")
    document = {"meta": {"sampling": SAMPLING}, **made.as_dict()}
    return json.loads(json.dumps(document))


def test_rows_hold_the_preset_and_every_method_at_its_time():
    rows = tune_rows(tuned(None), "tiny")
    chosen, *others = rows
    assert (chosen["case"], chosen["grid"], chosen["num_steps"]) == ("tuned", "gpu", 20)
    assert abs(chosen["prediction_error"]) < 0.1
    assert chosen["psnr_low"] <= chosen["psnr"] <= chosen["psnr_high"]
    assert {row["method"] for row in others} == set(METHODS)
    for row in others:
        assert row["case"] == "defaults"
        assert row["seconds"] == pytest.approx(chosen["seconds"], rel=0.03)
        assert row["gain_db"] == pytest.approx(chosen["psnr"] - row["psnr"])
        assert row["gain_low"] <= row["gain_db"] <= row["gain_high"]


def test_settings_that_missed_on_held_out_clips_are_kept_as_rejected():
    rows = tune_rows(tuned(None, gap=-1.5), "tiny")
    cases = [row["case"] for row in rows if row["case"] != "defaults"]
    assert cases[0] == "rejected 0"
    assert cases[-1] == "tuned"


def test_a_report_without_meta_is_refused():
    with pytest.raises(UsageError, match="run vidsparse tune again"):
        tune_rows({"held_out": []}, "tiny")


def test_resuming_must_keep_every_result(tmp_path):
    tuned(tmp_path)
    journal, preset, killed = (tmp_path / n for n in ("journal.jsonl", "preset.toml", "killed"))
    lines = journal.read_bytes().splitlines(keepends=True)
    killed.write_bytes(b"".join(lines[:9]) + b'{"key": "torn')
    row = resume_row(killed, journal, preset, preset)
    assert (row["results_at_kill"], row["results"]) == (8, len(lines) - 1)
    assert row["kept"] is True
    assert row["same_preset"] is True
    killed.write_bytes(b"".join(lines[:8]) + b'{"key": "another", "value": 1}\n')
    assert resume_row(killed, journal, preset, preset)["kept"] is False
    other = tmp_path / "other.toml"
    SparseConfig(method="draft").save(other)
    assert resume_row(killed, journal, preset, other)["same_preset"] is False


def test_preset_is_measured_place_by_place():
    config = SparseConfig(method="draft", parameters={"density": 0.5}, dense_steps=1)
    pipe = testing.wan(head_dim=16, layers=1).pipe
    places = [
        (Place("small", steps), Sampling(192, 192, 9, steps, guidance=1.0)) for steps in (2, 3)
    ]
    rows = list(elsewhere_rows(pipe, config, places, (Scene("a", 0),), label="mine"))
    assert [row["num_steps"] for row in rows] == [2, 3]
    for row in rows:
        assert row["psnr"] > 10
        assert row["seconds"] > 0
        assert (row["setting"], row["reaches"], row["target"]) == ("mine", None, None)


def test_command_writes_a_results_file(tmp_path):
    (tmp_path / "tune.json").write_text(json.dumps(tuned(tmp_path)))
    killed, preset = tmp_path / "journal.jsonl", tmp_path / "preset.toml"
    out = tmp_path / "rows.json"
    words = ["--tune", str(tmp_path), "--killed", str(killed), "--out", str(out)]
    assert main([*words, "--device", "cpu"]) == 2
    assert main([*words, "--replayed", str(preset), "--device", "cpu"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["case"] for row in rows] == ["tuned", "defaults", "defaults", "resume"]
    assert all(row["device"] for row in rows)


def test_what_tune_did_not_write_is_told(tmp_path, capsys):
    words = ["--tune", str(tmp_path), "--device", "cpu"]
    assert main(words) == 2
    assert "holds no preset.toml" in capsys.readouterr().err
    (tmp_path / "preset.toml").write_text("")
    assert main(words) == 0
    assert "tune.json is missing" in capsys.readouterr().err
