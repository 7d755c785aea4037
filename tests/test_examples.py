import importlib
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch

from vidsparse.pipelines.attach import attachments_of
from vidsparse.pipelines.testing import wan
from vidsparse.video import read_video

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_bare_transformer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("bare_transformer.py", monkeypatch)
    printed = capsys.readouterr().out
    assert "sparse              6" in printed
    assert "dense steps         2" in printed


def test_own_method_errs_more_with_less_density(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("own_method.py", monkeypatch)
    errors = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert errors[0] == 0.0 < errors[1] < errors[2]


def test_wrap_pipeline_writes_a_video(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wan(heads=2, head_dim=32).pipe.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    run("wrap_pipeline.py", monkeypatch, tmp_path / "model")
    assert read_video(tmp_path / "wrapped.mp4").shape == (33, 3, 128, 128)
    assert "density 0.4" in capsys.readouterr().out


def test_diffusers_tests_wraps_every_pipeline_built_or_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    plugin = importlib.import_module("diffusers_tests")
    before = diffusers.DiffusionPipeline.register_modules
    monkeypatch.setattr(diffusers.DiffusionPipeline, "register_modules", before)
    plugin.pytest_configure(None)
    first = wan()
    expected = first.latents(steps=1)
    first.pipe.save_pretrained(tmp_path)
    loaded = replace(first, pipe=diffusers.WanPipeline.from_pretrained(tmp_path))
    # diffusers' own tolerance for a pipeline that was saved and loaded.
    assert torch.allclose(loaded.latents(steps=1), expected, atol=5e-4)
    # Two pipelines with two branches and two layers, all dense.
    assert [dict(h.summary().dense_calls) for h in plugin._handles] == [{"density 1": 4}] * 2
    for tiny in (first, loaded):
        assert attachments_of(tiny.pipe)
