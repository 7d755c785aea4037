import json
import subprocess
import sys
from pathlib import Path

import pytest

from vidsparse.errors import UsageError
from vidsparse.profiling.tables import (
    cell,
    quality_overview,
    results_tables,
    tables_of,
    with_tables,
)

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


def test_the_overview_has_the_best_method_first_and_a_column_per_density(tmp_path: Path) -> None:
    def row(
        method: str, density: float, psnr: float, grid: str = "gpu", clips: int = 8
    ) -> dict[str, object]:
        return {
            "method": method, "grid": grid, "requested_density": density, "psnr": psnr,
            "clips": clips,
        }  # fmt: skip

    rows = [row("draft", 0.25, 27.7), row("svg", 0.5, 32.2), row("svg", 0.25, 29.8)]
    rows += [row("svg", 0.125, 11.1, grid="cpu"), row("lite", 0.5, 99.0, clips=4)]
    (tmp_path / "quality-a.json").write_text(json.dumps({"meta": META, "rows": rows}))
    lines = quality_overview(tmp_path).splitlines()
    assert lines[0].endswith("grid `gpu`, 8 clips")
    assert lines[2] == "| method | PSNR at 0.5 (dB) | PSNR at 0.25 (dB) |"
    assert lines[4:] == ["| svg | 32.2 | 29.8 |", "| draft | - | 27.7 |"]


@pytest.mark.parametrize("page", ["README.md", "profiling/results/README.md"])
def test_pages_say_what_the_results_say(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    assert with_tables(text, tables_of(text)) == text, "run: make tables"


def test_tables_need_nothing_that_reads_videos() -> None:
    # Machines that measure kernels may lack ffmpeg and OpenCV.
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(('cv2', 'imageio_ffmpeg')))\n"
        "import vidsparse.profiling.tables"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(UsageError, match="has no <!-- name --> of methods, pipelines"):
        tables_of("nothing here")


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
