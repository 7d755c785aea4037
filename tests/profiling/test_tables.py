import json
from pathlib import Path

import pytest

pytest.importorskip("cv2")

from vidsparse.errors import UsageError
from vidsparse.profiling.tables import cell, results_tables, with_tables

META = {
    "device": "GPU", "torch": "2.14", "commit": "abc", "date": "2026-01-02T03", "command": "do it"
}  # fmt: skip


def test_results_become_a_table_with_device_and_command(tmp_path: Path) -> None:
    rows = [{"case": "a", "impl": "triton", "density": 0.25, "kernel_ms": 1.23456, "rel_error": 0}]
    (tmp_path / "kernels-gpu.json").write_text(json.dumps({"meta": META, "rows": rows}))
    (tmp_path / "other-gpu.json").write_text("{}")
    table = results_tables(tmp_path)
    assert "GPU, torch 2.14, commit abc, 2026-01-02: `do it`" in table
    assert "| a | triton | 0.25 | 1.235 | 0 |" in table
    assert "dense (ms)" not in table
    assert table.count("###") == 1


def test_cells() -> None:
    assert cell(None) == "-"
    assert cell(75600.0) == "75600"
    assert cell("unavailable: get it with pip") == "unavailable"
    assert cell("svg:rows=3") == "svg:rows=3"


def test_tables_replace_what_is_between_the_markers() -> None:
    page = "a\n<!-- x -->\nold\n<!-- end of x -->\nb"
    assert with_tables(page, {"x": "new"}) == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb"
    assert with_tables(with_tables(page, {"x": ""}), {"x": "old"}) == page
    with pytest.raises(UsageError, match="no <!-- y -->"):
        with_tables(page, {"y": ""})
