"""Thresholds found on a dense generation, and the preset made of them."""

import json
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vidsparse
from vidsparse import cli
from vidsparse.attention import run_plan
from vidsparse.calibrate import Calibration, Choice, calibrate
from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.generate import Sampling, sample
from vidsparse.methods.base import SparseMethod
from vidsparse.methods.lite import Lite
from vidsparse.methods.lite_thresholds import ThresholdTable
from vidsparse.pipelines.testing import wan

# 256 tokens, the fewest that are attended to sparsely.
SAMPLING = Sampling(height=128, width=128, num_frames=13, steps=6, guidance=1.0)
SCENES = [Scene("a red circle", 0), Scene("a blue square", 1)]
TARGET = 0.08
LITE = Lite(criterion="running_mass", blocks=(32, 16))
LADDER = (0.1, 0.3, 0.6, 0.9)


@pytest.fixture(scope="module")
def pipe() -> Any:
    """A random model whose attention is far from even."""
    pipe = wan(heads=2, head_dim=32).pipe
    for block in pipe.transformer.blocks:
        block.attn1.norm_q.weight.data *= 6
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def found(pipe: Any) -> Any:
    return calibrate(
        pipe, SCENES[:1], SAMPLING, lite=LITE, target_error=TARGET, candidates=LADDER, dense_steps=1
    )


@dataclass(frozen=True)
class Beside(SparseMethod):
    """Leave calls dense, and note the error that another method would make."""

    name = "beside"
    inner: SparseMethod = field(kw_only=True)
    errors: dict[Any, list[float]] = field(default_factory=dict)

    def init_state(self) -> Any:
        return self.inner.init_state()

    def plan(self, q: Tensor, k: Tensor, v: Tensor, layout: Any, site: Any, state: Any) -> None:
        plan = self.inner.plan(q, k, v, layout, site, state)
        output = run_plan(q, k, v, plan)
        self.inner.observe(output, plan, site, state)
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        if plan.dense_reason is None:
            error = float((output.out - dense).abs().sum() / dense.abs().sum())
            self.errors.setdefault((site.layer, site.step * 3 // 6), []).append(error)


def test_the_table_makes_the_errors_that_were_found_on_the_dense_generation(pipe, found):
    watcher = Beside(inner=replace(LITE, thresholds=found.table))
    with vidsparse.enabled(pipe, watcher, dense_steps=1):
        for scene in SCENES[:1]:
            sample(pipe, scene.prompt, SAMPLING, seed=scene.seed)
    for choice in found.choices:
        errors = watcher.errors.get((choice.layer, choice.segment), [])
        assert sum(errors) / max(1, len(errors)) == pytest.approx(choice.error, rel=1e-3, abs=1e-6)
        assert choice.error <= TARGET
    assert any(choice.error > 0.01 for choice in found.choices)
    assert any(choice.density < 0.95 for choice in found.choices)


def test_the_next_candidate_would_have_been_too_much(pipe, found):
    choice = next(c for c in found.choices if c.threshold < LADDER[-1])
    higher = next(value for value in LADDER if value > choice.threshold)
    rows = [list(row) for row in found.table.layers["transformer"]]
    rows[choice.layer][choice.segment :] = [higher, *[0.0] * (2 - choice.segment)]
    table = replace(found.table, layers={"transformer": rows})
    watcher = Beside(inner=replace(LITE, thresholds=table))
    with vidsparse.enabled(pipe, watcher, dense_steps=1):
        for scene in SCENES[:1]:
            sample(pipe, scene.prompt, SAMPLING, seed=scene.seed)
    later = [watcher.errors.get((choice.layer, s), [0.0]) for s in range(choice.segment, 3)]
    assert max(sum(errors) / len(errors) for errors in later) > TARGET


def test_density_is_that_of_places_that_skipped():
    def at(threshold, density):
        return Choice("transformer", 0, 0, threshold, 0.0, density)

    table = ThresholdTable("running_mass", (32, 16), {"transformer": ((0.0,),)})
    assert Calibration(table, (at(0.0, 1.0), at(0.2, 0.5)), 0.05).density() == 0.5
    assert Calibration(table, (at(0.0, 1.0),), 0.05).density() == 1


def test_a_smaller_error_keeps_more(pipe, found):
    strict = calibrate(
        pipe, SCENES[:1], SAMPLING, lite=LITE, target_error=0.02, candidates=LADDER, dense_steps=1
    )
    assert strict.density() > found.density()
    assert found.density() < 0.95
    assert all(choice.error <= 0.02 for choice in strict.choices)


def test_the_preset_holds_the_thresholds_for_this_model_only(pipe, found, tmp_path):
    for name in ("lite.toml", "lite.json"):
        path = tmp_path / name
        found.preset(pipe, LITE, 1).save(path)
        config = SparseConfig.load(path)
        method, schedule = config.build()
        assert method.thresholds.as_values() == found.table.as_values()
        assert schedule.dense_steps == 1
    with vidsparse.enabled(pipe, preset=path) as handle:
        sample(pipe, "a red circle", SAMPLING, seed=0)
        summary = handle.summary()
    assert summary.density < 1
    assert 0 < summary.error_bound <= 2
    assert 0 < summary.state_bytes < 2**20
    other = wan(heads=2, head_dim=32, layers=3).pipe
    with pytest.raises(UsageError, match="the preset is for another model"):
        vidsparse.enable(other, preset=path)
    with (
        vidsparse.enabled(pipe, preset=path, parameters={"blocks": (64, 64)}),
        pytest.raises(UsageError, match="tiles of 32 x 16 tokens"),
    ):
        sample(pipe, "a red circle", SAMPLING, seed=0)


def test_the_preset_says_all_that_the_thresholds_were_found_with(pipe, found, tmp_path):
    lite = replace(LITE, refresh_every=4, compensate=True, order="compact", frames=2)
    path = tmp_path / "lite.toml"
    found.preset(pipe, lite, 1).save(path)
    method, _ = SparseConfig.load(path).build()
    assert method == replace(lite, thresholds=method.thresholds)


def test_compensation_is_calibrated_too(pipe):
    settings = {"target_error": TARGET, "candidates": LADDER, "dense_steps": 1}
    plain, compensated = (
        calibrate(pipe, SCENES[:1], SAMPLING, lite=replace(LITE, compensate=on), **settings)
        for on in (False, True)
    )
    pairs = zip(plain.choices, compensated.choices, strict=True)
    assert any(a.error != b.error for a, b in pairs if a.density < 1)


@pytest.mark.parametrize(
    ("scenes", "options", "message"),
    [
        ([], {}, "no prompt to calibrate on"),
        (SCENES, {"target_error": 0.0}, r"target_error=0.0 must lie in \(0, 1\)"),
        (SCENES, {"segments": 0}, "segments=0 must be at least 1"),
        (SCENES, {"candidates": (0.3, 0.1)}, "must ascend"),
        (SCENES, {"candidates": ()}, "must ascend"),
        (SCENES, {"candidates": (-10.0,)}, r"candidate=-10.0 must lie in \[0, 1\]"),
        (SCENES, {"lite": Lite(threshold=0.1)}, "has threshold=0.1 already"),
        (SCENES[:1], {"segments": 1, "dense_steps": 1.0}, "leave some steps sparse"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(pipe, scenes, options, message):
    with pytest.raises(UsageError, match=message):
        calibrate(pipe, scenes, replace(SAMPLING, steps=1), **options)


def test_the_command_writes_a_preset(pipe, tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "model", tmp_path / "lite.toml"
    pipe.save_pretrained(folder)
    size = "--height 128 --width 128 --num-frames 13 --steps 4 --guidance 1"
    aim = "--segments 2 --seeds 2 --target-error 0.5"
    command = f"calibrate --model {folder} --out {out} {aim} {size} --json"
    code, text = run(command, monkeypatch, capsys)
    assert code == 0
    assert json.loads(text.out)["preset"] == str(out)
    method, _ = SparseConfig.load(out).build()
    assert len(method.thresholds.layers["transformer"]) == 2
    assert len(method.thresholds.layers["transformer"][0]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--out thresholds.txt", "must end in .toml or .json"),
        ("--out t.toml --method draft", "only lite has thresholds"),
        ("--out t.toml --prompts empty.txt", "holds no prompt"),
        ("--out t.toml --method lite:threshold=0.1", "has threshold=0.1 already"),
    ],
)
def test_the_command_refuses_in_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    code, text = run(f"calibrate {options}", monkeypatch, capsys)
    assert code == 2
    assert message in text.err
    assert len(text.err.strip().splitlines()) == 1


def run(command: str, monkeypatch: Any, capsys: Any) -> tuple[int, Any]:
    monkeypatch.setattr(sys, "argv", ["vidsparse", *command.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), capsys.readouterr()
