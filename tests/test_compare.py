import json
import math
from typing import Any

import pytest
import torch

from vidsparse import report
from vidsparse.compare import Comparison, Contender, Record, Scene, compare
from vidsparse.errors import UsageError
from vidsparse.generate import Clip, DenoiseTimer, Sampling, sample
from vidsparse.models.content import ContentScore
from vidsparse.pipelines.testing import wan
from vidsparse.quality import Quality
from vidsparse.request import SparseRequest, parse_count_or_share, parse_method

# 256 tokens: the fewest that are attended to sparsely.
SAMPLING = Sampling(height=128, width=128, num_frames=13, steps=2)
PLAIN = SparseRequest(label="", method=None)


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = wan(heads=2, head_dim=32).pipe
    made.set_progress_bar_config(disable=True)
    return made


def contender(pipe: Any, text: str) -> Contender:
    return Contender(text, pipe, parse_method(text, PLAIN))


def run(pipe: Any, *methods: str, scenes: tuple[Scene, ...] = (Scene("x", 3),)) -> Comparison:
    contenders = [contender(pipe, text) for text in methods]
    return compare(Contender("dense", pipe), contenders, scenes, SAMPLING, lpips="unavailable: no")


def test_density_one_is_the_dense_video(pipe: Any) -> None:
    (row,) = run(pipe, "random:density=1").rows()
    assert row["identical"]
    assert row["psnr"] is None
    assert row["density"] == 1.0
    assert row["lpips"] == "unavailable: no"
    json.dumps(row, allow_nan=False)


def test_more_density_is_closer_to_dense_and_the_second_run_is_the_first(pipe: Any) -> None:
    methods = ("oracle:density=0.3", "oracle:density=0.8")
    first, second = run(pipe, *methods), run(pipe, *methods)
    low, high = first.rows()
    assert high["psnr"] > low["psnr"]
    assert [row["psnr"] for row in second.rows()] == [row["psnr"] for row in first.rows()]


def test_every_scene_is_measured_against_its_own_dense_clip(pipe: Any) -> None:
    made = run(pipe, "random:density=1", scenes=(Scene("x", 0), Scene("y", 1)))
    assert made.rows()[0]["identical"]
    assert made.rows()[0]["clips"] == 2
    first = made.clips()[0][1]
    assert torch.equal(first, sample(pipe, "x", SAMPLING, seed=0).video)


def test_progress_names_contender_and_seed(pipe: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    compare(
        Contender("dense", pipe),
        [contender(pipe, "random")],
        [Scene("x", 7)],
        SAMPLING,
        lpips="",
        on_progress=lambda *what: seen.append(what),
    )
    assert seen == [(f"{name}, seed 7", done, 2) for name in ("dense", "random") for done in (1, 2)]


def test_bad_method_fails_before_anything_is_generated(pipe: Any) -> None:
    seen: list[object] = []
    with pytest.raises(UsageError):
        compare(
            Contender("dense", pipe),
            [contender(pipe, "random"), contender(pipe, "svg:density=0.01")],
            [Scene("x", 0)],
            SAMPLING,
            lpips="",
            on_progress=lambda *what: seen.append(what),
        )
    assert seen == []


def test_a_stopped_comparison_leaves_the_pipeline_as_it_was(pipe: Any) -> None:
    before = dict(pipe.transformer.attn_processors)

    def stop(name: str, done: int, total: int) -> None:
        if name.startswith("random"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(
            Contender("dense", pipe),
            [contender(pipe, "random")],
            [Scene("x", 0)],
            SAMPLING,
            lpips="",
            on_progress=stop,
        )
    after = pipe.transformer.attn_processors
    assert all(after[name] is processor for name, processor in before.items())


def record(label: str, seconds: float, psnr: float, *, shape: bool) -> Record:
    quality = Quality(psnr=(psnr, psnr), ssim=(0.5, 0.7), lpips=(0.2, 0.4))
    calls = [{"density": 0.25, "overall_density": 0.4}]
    content = [ContentScore(shape=shape, colour=True, direction=True)]
    video = torch.zeros(2, 3, 16, 16)
    return Record(label, video, [seconds], [quality], content, calls)


def test_rows_report_and_table_say_the_same() -> None:
    dense = record("dense", 4.0, math.inf, shape=True)
    made = Comparison((Scene("x", 0),), dense, (record("svg", 2.0, 30.0, shape=False),))
    (row,) = made.rows()
    assert row["speedup"] == 2.0
    assert row["ssim"] == pytest.approx(0.6)
    assert row["lpips"] == pytest.approx(0.3)
    assert row["content"] == {"shape": 0.0, "colour": 1.0, "direction": 1.0}
    shown = report.cells(row)
    assert shown[:7] == ("svg", "2.00x", "0.250", "0.400", "30.00", "0.6000", "0.3000")
    assert "shape 0%" in shown[7]
    assert len(shown) == len(report.HEADERS)
    assert not any(note.startswith("LPIPS") for note in report.notes(made))


def test_report_escapes_what_users_type(tmp_path: Any) -> None:
    dense = record("dense", 4.0, math.inf, shape=True)
    made = Comparison((Scene("<script>", 0),), dense, (record("svg", 2.0, 30.0, shape=True),))
    meta = {"model": "m", "device": "d", "date": "t", "command": "c", "commit": None}
    report.write_report(tmp_path / "a.html", made, {**meta, "dtype": "f", "versions": {}})
    page = (tmp_path / "a.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_infinite_values_never_reach_a_file(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_json(tmp_path / "a.json", {"psnr": math.inf})
    assert list(tmp_path.iterdir()) == []


def test_timer_spans_all_transformer_calls_and_leaves_no_hooks() -> None:
    module = torch.nn.Linear(2, 2)
    with DenoiseTimer([module]) as timer:
        assert timer.seconds() == 0.0
        for _ in range(2):
            module(torch.zeros(1, 2))
    assert timer.seconds() > 0
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_clip_is_float_video_on_the_cpu(pipe: Any) -> None:
    clip = sample(pipe, "x", SAMPLING, seed=0)
    assert isinstance(clip, Clip)
    assert clip.video.shape == (13, 3, 128, 128)
    assert clip.video.dtype == torch.float32
    assert 0 <= float(clip.video.min()) <= float(clip.video.max()) <= 1
    assert 0 < clip.denoise_seconds < clip.total_seconds


def test_method_text_overrides_shared_options() -> None:
    shared = SparseRequest("", None, density=0.3, dense_steps=2)
    made = parse_method("svg:density=0.2:rows=32:heads=spatial:blocks=[64, 64]", shared)
    assert made.method == "svg"
    assert made.density == 0.2
    assert made.dense_steps == 2
    assert made.parameters == {"rows": 32, "heads": "spatial", "blocks": [64, 64]}
    assert parse_method("svg", shared).density == 0.3


def test_counts_and_shares_are_told_apart() -> None:
    assert parse_count_or_share("1", "x") == 1
    assert isinstance(parse_count_or_share("1", "x"), int)
    assert isinstance(parse_count_or_share("1.0", "x"), float)
    assert parse_count_or_share(None, "x") is None
