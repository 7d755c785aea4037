import runpy
import sys
from pathlib import Path

import pytest

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
