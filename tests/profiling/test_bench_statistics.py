import json
from pathlib import Path

import pytest

from vidsparse.profiling.bench_statistics import main


def test_rows_hold_each_density_and_statistic(tmp_path: Path) -> None:
    out = tmp_path / "statistics.json"
    sizes = ["--heads", "2", "--tokens", "900", "--head-size", "32", "--repeats", "1"]
    assert main([*sizes, "--device", "cpu", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["statistic"] for row in rows[:4]] == [
        "none", "mass against an LSE", "running max", "running mass",
    ]  # fmt: skip
    assert len(rows) == 20
    plain = [row for row in rows if row["statistic"] == "none"]
    assert all(row["over_plain"] == 0 for row in plain)
    assert plain[0]["density"] == 1
    assert abs(plain[0]["over_linear"]) < 1e-3
    densities = [row["density"] for row in plain]
    assert densities == sorted(densities, reverse=True)


def test_sizes_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--heads", "0", "--device", "cpu"])
    assert left.value.code == 2
    assert "--heads 0 must be at least 1" in capsys.readouterr().err
