import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vidsparse import report
from vidsparse.clips import ClipFacts, Scene
from vidsparse.errors import UsageError
from vidsparse.quality import Quality
from vidsparse.report import Results
from vidsparse.report.players import make_tiles
from vidsparse.scores import Comparison, Record

SCENES = (Scene("a", 0), Scene("a", 1))


def record(
    label: str, seconds: tuple[float, float], psnr: tuple[float, float], *, shape: bool
) -> Record:
    clips = []
    for duration, value in zip(seconds, psnr, strict=True):
        quality = Quality(
            psnr=(value, value + 2), ssim=(0.5, 0.7), lpips=(0.2, 0.4), flicker=(0.01,)
        )
        clips.append(ClipFacts(
            duration, duration, quality=None if label == "dense" else quality,
            content={"shape": shape, "colour": True},
            calls={"density": 0.25, "overall_density": 0.4},
        ))  # fmt: skip
    return Record(label, f"{label}-key", clips)


@pytest.fixture
def comparison() -> Comparison:
    dense = record("dense", (4.0, 8.0), (math.inf, math.inf), shape=True)
    svg = record("svg", (2.0, 3.0), (30.0, 20.0), shape=False)
    floor = record("dense bfloat16", (4.0, 8.0), (45.0, 47.0), shape=True)
    return Comparison(SCENES, dense, (svg,), floor, (0.2, 0.2))


def test_rows_say_speed_quality_and_verdict(comparison: Comparison) -> None:
    svg, floor = comparison.rows()
    assert svg["speedup"] == pytest.approx(12 / 5)
    assert svg["psnr"] == pytest.approx(26)
    pooled = -10 * math.log10((10**-3 + 10**-3.2 + 10**-2 + 10**-2.2) / 4)
    assert svg["psnr_pooled"] == pytest.approx(pooled)
    assert svg["ssim"] == pytest.approx(0.6)
    assert svg["lpips"] == pytest.approx(0.3)
    assert svg["content"] == {"shape": 0.0, "colour": 1.0}
    assert svg["verdict"] == "diverged"
    # Two clips, 21 and 31 dB: 12.706 standard errors of 5 dB (Student's t, one degree of freedom).
    assert svg["intervals"]["psnr"]["low"] == pytest.approx(26 - 12.7062 * 5, abs=1e-3)
    # The same figure as the row's, and as little is known about it from two clips.
    speed = svg["intervals"]["speedup"]
    assert speed["mean"] == svg["speedup"]
    assert 0 < speed["low"] < 2 < 8 / 3 < speed["high"]
    assert "lpips_vgg" not in svg["intervals"]
    assert floor["role"] == "floor"
    json.dumps([svg, floor], allow_nan=False)


def test_table_and_notes_say_the_same(comparison: Comparison) -> None:
    document = report.document(comparison, {"model": "m"})
    shown = report.cells(document["rows"][0])
    assert len(shown) == len(report.HEADERS)
    assert shown[:3] == ("svg\ndiverged", "2.40x", "0.250\n(0.400)")
    assert shown[3:] == ("26.00\n±63.53", "0.6000", "0.3000", "10.00", "0/100")
    assert report.cells(document["rows"][1])[0] == "dense bfloat16\nthe floor"
    notes = report.notes(document)
    assert not any(note.startswith("LPIPS") for note in notes)
    assert any("floor: dense bfloat16 against dense" in note for note in notes)
    console = Console(width=80, file=io.StringIO())
    console.print(report.table(document))
    printed = console.file.getvalue()
    assert all(word in printed for word in ("svg", "diverged", "26.00", "0.3000", "0/100"))


def test_infinite_values_never_reach_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^rows\[1\].psnr is inf, which is not JSON compliant"):
        report.write_json(tmp_path / "a.json", {"rows": [1, {"psnr": math.inf}]})
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_written(results: Results) -> None:
    written = report.write_pictures(results)
    assert [path.name for path in written] == ["side-by-side.mp4", "contact-sheet.png"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_tiles_never_exceed_what_browsers_decode() -> None:
    clips = [np.zeros((1, 720, 1280, 3), np.uint8)] * 9
    tiles = make_tiles(clips, 16)
    right = max(x for x, _ in tiles.places) + tiles.width
    bottom = max(y for _, y in tiles.places) + tiles.height
    assert len(tiles.places) == 17
    assert right <= 4096
    assert right * bottom <= 4096 * 2304
    assert tiles.width / tiles.height == pytest.approx(1280 / 720, rel=0.02)


def test_tiles_are_apart_and_start_at_macroblocks() -> None:
    clips = [np.full((2, 70, 100, 3), 40 * i, np.uint8) for i in range(4)]
    tiles = make_tiles(clips, 16)
    assert len(set(tiles.places)) == 7
    assert all(x % 16 == y % 16 == 0 for x, y in tiles.places)
    assert tiles.heat_scale == pytest.approx(120 / 255, abs=0.01)


@pytest.mark.parametrize(
    "where",
    [
        "meta.dtype", "meta.python", "meta.driver", "meta.commit", "meta.device", "dense.content",
        "rows.reason", "rows.overall_density", "rows.identical", "rows.intervals.speedup",
        "rows.lpips", "rows.psnr_pooled",
    ],
)  # fmt: skip
def test_results_that_lack_something_are_refused_in_one_line(
    results: Results, tmp_path: Path, where: str
) -> None:
    found = json.loads(json.dumps(results.document))
    part, *middle, last = where.split(".")
    entry = found[part][0] if part == "rows" else found[part]
    for name in middle:
        entry = entry[name]
    del entry[last]
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match=f"lacks {part}.*: .*{last}"):
        Results.load(tmp_path)
