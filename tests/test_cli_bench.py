import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vidsparse.cli import app
from vidsparse.errors import UsageError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", "--method", "svg@9bit"), "unknown precision '9bit'; choose one of native"),
        (("model", "--method", "svg@"), "unknown precision ''"),
        (("model", "--density", "1"), r"--density 1.0 must lie in \(0, 1\)"),
        (("model", "--density", "nan"), r"--density nan must lie in \(0, 1\)"),
        *(
            ((command, "--out", "file/a.json"), "file is no writable folder")
            for command in ("methods", "kernels", "cpu", "model")
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_timed(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: object, **__: object) -> None:
        raise AssertionError("something was timed")

    for place in ("bench_methods.bench_methods", "bench.bench_case", "bench_model.ModelBench"):
        monkeypatch.setattr(f"vidsparse.profiling.{place}", timed)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=message):
        run(*arguments)


def test_defaults_leave_nothing_out_on_a_cpu() -> None:
    done = run("methods", "--device", "cpu", "--repeats", "1", "--json")
    assert done.stderr == ""
    assert [row["requested_density"] for row in json.loads(done.stdout)["rows"]] == [0.5, 0.4]


def test_nothing_timed_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing was timed"):
        run("methods", "--device", "cpu", "--density", "0.1", "--repeats", "1")


def test_results_are_shown_although_they_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"case": "a", "eff_tflops": 1.0}]
    monkeypatch.setattr("vidsparse.profiling.bench.bench_case", lambda *_, **__: rows)

    def full(*_: object) -> None:
        raise UsageError("cannot write: No space left on device")

    monkeypatch.setattr("vidsparse.report.write_json", full)
    with pytest.raises(UsageError, match="No space left"):
        app(["bench", "cpu", "--out", str(tmp_path / "a.json")], standalone_mode=False)
    assert "eff_tflops" in capsys.readouterr().out


def test_throughput_of_slow_kernels_is_not_rounded_to_nothing() -> None:
    row: dict[str, Any] = json.loads(run("cpu", "--repeats", "1", "--json").stdout)["rows"][0]
    assert row["eff_tflops"] > 0
