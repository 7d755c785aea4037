import json

import pytest

from vidsparse.profiling import bench


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(bench, "bench_rows", lambda *a, **k: iter([{"case": "a"}, {"case": "b"}]))


def test_results_are_written_after_every_row_into_a_folder_that_is_made(tmp_path):
    path = tmp_path / "results" / "rows.json"
    assert bench.main(["--json", str(path)]) == 0
    assert [row["case"] for row in json.loads(path.read_text())["rows"]] == ["a", "b"]


def test_a_kill_while_writing_leaves_the_results_before(tmp_path, cut_off_writes):
    path = tmp_path / "rows.json"
    bench.main(["--json", str(path)])
    before = path.read_text()
    cut_off_writes()
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--json", str(path)])
    assert path.read_text() == before


def test_an_unknown_case_is_one_line(capsys):
    assert bench.main(["--case", "nope"]) == 2
    assert "unknown case 'nope'; use " in capsys.readouterr().err
