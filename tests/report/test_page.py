import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vidsparse
from vidsparse.clips import ClipFacts, SiteDensity
from vidsparse.errors import UsageError
from vidsparse.report import Results, write_report
from vidsparse.report.page import _layer_tables

OpenPage = Callable[[Path], Any]
CANVASES = (
    "[...document.querySelectorAll('canvas')].map(c => [Number(c.dataset.frame), "
    "c.getContext('2d').getImageData(8, 8, 1, 1).data[1]])"
)
# The third canvas on is a player of frames; the second is the difference, which is 0 there.
STAGE, HEAT = 0, 1


@pytest.fixture(scope="session")
def html(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, results)
    return path


@pytest.fixture(scope="module")
def page(html: Path, open_page: OpenPage) -> Iterator[Any]:
    with open_page(html) as page:
        page.until("document.getElementById('reel').readyState >= 2")
        page.until("document.getElementById('stage').dataset.frame !== undefined")
        yield page


def test_page_is_self_contained_and_escapes_what_users_type(html: Path) -> None:
    text = html.read_text()
    assert "<b>red</b>" not in text
    assert "&lt;b&gt;red&lt;/b&gt;" in text
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", text) == []
    assert not re.search(r"@import|url\(\s*['\"]?http", text)
    assert "vidsparse compare --method svg" in text
    data = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert data is not None
    assert "<" not in data[1]
    assert json.loads(data[1])["labels"][1]["name"] == "svg"


def test_verdicts_and_floor_are_in_the_table(html: Path) -> None:
    text = html.read_text()
    assert text.count('class="badge same-content">same content') == 1
    assert text.count('class="badge diverged">diverged') == 1
    assert 'class="badge the-floor">the floor' in text
    # No LPIPS anywhere: no column, one note.
    assert "LPIPS alex" not in text
    assert text.count("LPIPS unavailable: here") == 1


def test_players_show_the_same_frame_while_playing(page: Any) -> None:
    page.evaluate("document.getElementById('play').click()")
    page.until("!document.getElementById('reel').paused")
    seen = set()
    end = time.monotonic() + 20
    while len(seen) < 4 and time.monotonic() < end:
        drawn = page.evaluate(CANVASES)
        frames = {frame for frame, _ in drawn}
        assert len(frames) == 1
        seen |= frames
        (frame,) = frames
        # The pictures themselves say which frame they show: 10 + 20 levels a frame. On a busy
        # machine the video may have moved on by one since it told its time, for all alike.
        levels = [level for index, (_, level) in enumerate(drawn) if index != HEAT]
        assert max(levels) - min(levels) <= 4
        shown = round((levels[0] - 10) / 20)
        assert levels[0] == pytest.approx(10 + 20 * shown, abs=4)
        assert shown - frame in (0, 1)
        assert drawn[HEAT][1] < 8
    assert len(seen) >= 4
    page.evaluate("document.getElementById('play').click()")
    page.until("document.getElementById('reel').paused")


def seek(page: Any, frame: int) -> None:
    page.evaluate(
        f"(() => {{ const s = document.getElementById('seek'); s.value = {frame};"
        "s.dispatchEvent(new Event('input')); })()"
    )
    page.until(f"document.getElementById('stage').dataset.frame === '{frame}'")


def test_the_slider_seeks_to_the_frame(page: Any) -> None:
    for frame in (9, 2, 11, 0):
        seek(page, frame)
        levels = [level for index, (_, level) in enumerate(page.evaluate(CANVASES)) if index != 1]
        assert levels == pytest.approx([10 + 20 * frame] * len(levels), abs=4)
        assert f"frame {frame + 1} of 12" in page.evaluate(
            "document.getElementById('count').textContent"
        )


def test_the_wipe_follows_the_mouse(page: Any) -> None:
    seek(page, 0)
    page.evaluate("document.querySelector('[data-index=\"2\"]').click()")
    page.evaluate("document.getElementById('wipe').scrollIntoView()")
    box = page.evaluate(
        "(() => { const b = document.getElementById('wipe').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height] })()"
    )
    left, top, width, height = box
    middle = top + height / 2
    noise = (
        "(() => { const c = document.getElementById('stage'); const d = c.getContext('2d')"
        ".getImageData(0, c.height * 0.8, c.width, 1).data; const v = [];"
        "for (let i = 0; i < c.width; i += 1) v.push(d[4 * i]); return v })()"
    )
    for share in (0.25, 0.75):
        page.drag((left + width / 2, middle), (left + width * share, middle))
        shown = page.evaluate("document.getElementById('handle').getAttribute('aria-valuenow')")
        assert abs(int(shown) - 100 * share) <= 1
        row = page.evaluate(noise)
        edge = int(len(row) * share)
        # Dense is flat left of the handle; the random method is noise right of it.
        assert max(row[: edge - 4]) - min(row[: edge - 4]) < 12
        assert max(row[edge + 4 :]) - min(row[edge + 4 :]) > 60


def test_choosing_clip_metric_and_map_redraws(page: Any) -> None:
    page.evaluate(
        "(() => { const s = document.getElementById('scene'); s.value = 1;"
        "s.dispatchEvent(new Event('change')); })()"
    )
    green = (
        "(() => { const c = document.querySelectorAll('#wall canvas')[0]; const s = c.width / 64;"
        "return c.getContext('2d').getImageData(14 * s, 30 * s, 1, 1).data[1] })()"
    )
    page.until(f"Math.abs({green} - 130) < 12")
    assert page.evaluate("document.querySelectorAll('#strips path').length") == 3 * 4
    before = page.evaluate("document.getElementById('pareto').innerHTML")
    page.evaluate(
        "(() => { const s = document.getElementById('axis'); s.value = 'ssim';"
        "s.dispatchEvent(new Event('change')); })()"
    )
    assert page.evaluate("document.getElementById('pareto').innerHTML") != before
    assert page.evaluate("document.querySelectorAll('#pareto circle').length") == 2
    assert page.evaluate("document.querySelectorAll('#map rect').length") == 6
    assert page.evaluate("document.querySelectorAll('#heads figure').length") == 2
    titles = page.evaluate("[...document.querySelectorAll('#map title')].map(t => t.textContent)")
    assert "step 1, layer 0: 0.300" in titles
    assert "step 1, layer 1: dense" in titles


NICE_TICKS = re.search(
    r"function niceTicks.*?^}",
    (Path(vidsparse.__file__).parent / "templates" / "report.js.j2").read_text(),
    re.S | re.M,
)


def test_every_axis_has_two_ticks_that_say_what_they_are(page: Any) -> None:
    assert NICE_TICKS is not None
    ranges = [[0.9361, 1.0012], [24.2, 37.9], [99.2, 99.4], [-0.4, 0.3], [0.99951, 0.99999], [0, 9]]
    found = page.evaluate(
        f"(() => {{ {NICE_TICKS[0]}; return {ranges}.map(([a, b]) => niceTicks(a, b, 1)); }})()"
    )
    for (low, high), (ticks, places) in zip(ranges, found, strict=True):
        assert len(ticks) >= 2
        assert all(low <= tick <= high for tick in ticks)
        assert [float(f"{tick:.{places}f}") for tick in ticks] == pytest.approx(ticks, abs=1e-9)
    lines = (
        "[...document.querySelectorAll('.strip svg')].map(s => s.querySelectorAll('.grid').length)"
    )
    assert min(page.evaluate(lines)) >= 2


def test_long_prompts_stay_within_their_card(page: Any) -> None:
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    page.evaluate(
        "document.querySelector('#scene option').textContent = 'a very long prompt '.repeat(9)"
    )
    ends = page.evaluate(
        "['#scene', '#look'].map(id => document.querySelector(id).getBoundingClientRect().right)"
    )
    page.call("Emulation.clearDeviceMetricsOverride")
    assert ends[0] <= ends[1]


def test_chart_and_table_show_the_same_speed_up(html: Path) -> None:
    text = html.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    for point in data["points"]:
        assert f"<td>{point['intervals']['speedup']['mean']:.2f}x<small>" in text


def test_dense_calls_are_grey_in_maps_by_layer() -> None:
    sites = [SiteDensity("t", 0, 0, 1.0), SiteDensity("t", 0, 1, 1.0), SiteDensity("t", 1, 0, 1.0)]
    sites.append(SiteDensity("t", 1, 1, 0.25))
    (table,) = _layer_tables([ClipFacts(1.0, 1.0, sites=tuple(sites))] * 2)
    assert table["steps"] == [0, 1]
    assert table["values"] == [[None, None], [None, 0.25]]


@pytest.mark.parametrize("floor", [True, False])
def test_the_band_of_the_floor_is_told_of_only_where_there_is_one(
    results: Results, tmp_path: Path, floor: bool
) -> None:
    rows = [row for row in results.document["rows"] if floor or row["role"] != "floor"]
    write_report(tmp_path / "a.html", Results(results.folder, {**results.document, "rows": rows}))
    assert ("the band is what two dense" in (tmp_path / "a.html").read_text()) == floor


def test_nothing_is_complained_about_and_nothing_is_fetched(page: Any) -> None:
    assert page.complaints == []


def test_complaints_would_be_seen(html: Path, open_page: OpenPage, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = html.read_text().replace(
        '"use strict";', '"use strict"; console.error("a"); fetch("http://x.invalid/"); no();', 1
    )
    broken.write_text(text)
    with open_page(broken) as page:
        page.evaluate("new Promise(done => setTimeout(done, 300))")
        found = " ".join(page.complaints)
    assert "no is not defined" in found
    assert "asks for http://x.invalid/" in found
    assert "error: " in found


def test_a_missing_clip_is_named(results: Results, tmp_path: Path) -> None:
    lost = Results(tmp_path, results.document)
    with pytest.raises(UsageError, match=r"there is no video|lacks clip"):
        write_report(tmp_path / "a.html", lost)
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 2}',
        '{"format": 2, "meta": {}, "scenes": [], "dense": {}, "rows": []}',
        '{"format": 2, "meta": {"fps": 9, "command": ""}, "scenes": 3, "dense": {}, "rows": []}',
    ],
)
def test_damaged_or_other_results_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UsageError, match=r"is damaged|is no results file|lacks"):
        Results.load(tmp_path)
