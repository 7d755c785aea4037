import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidsparse.clips import FolderClips, Forgetful, MemoryClips
from vidsparse.compare import Comparison, Contender, Judges, Progress, Scene, compare
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.floors import floor_contender
from vidsparse.generate import (
    Clip,
    DenoiseTimer,
    Sampling,
    sample,
    settle_sampling,
)
from vidsparse.loading import load_pipeline
from vidsparse.pipelines.testing import wan
from vidsparse.precision import attend_8bit
from vidsparse.quality import Lpips, ssim_per_frame
from vidsparse.report import document
from vidsparse.report.tables import findings
from vidsparse.request import SparseRequest, parse_count_or_share, parse_method
from vidsparse.video import to_float, to_uint8
from vidsparse.watched_sites import watch_sites

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


JUDGES = Judges(lpips="unavailable: no")


def run(
    pipe: Any, *methods: str, scenes: tuple[Scene, ...] = (Scene("x", 3),), **options: Any
) -> Comparison:
    contenders = [contender(pipe, text) for text in methods]
    return compare(Contender("dense", pipe), contenders, scenes, SAMPLING, JUDGES, **options)


def test_density_one_is_the_dense_video(pipe: Any) -> None:
    (row,) = run(pipe, "random:density=1").rows()
    assert row["identical"]
    assert row["psnr"] is None
    assert row["density"] == 1.0
    assert row["lpips"] == "unavailable: no"
    assert row["verdict"] == "indistinguishable"
    json.dumps(row, allow_nan=False)


def test_more_density_is_closer_to_dense_and_the_second_run_is_the_first(pipe: Any) -> None:
    methods = ("oracle:density=0.3", "oracle:density=0.8")
    first, second = run(pipe, *methods), run(pipe, *methods)
    low, high = first.rows()
    assert high["psnr"] > low["psnr"]
    assert [row["psnr"] for row in second.rows()] == [row["psnr"] for row in first.rows()]


def test_every_scene_is_measured_against_its_own_dense_clip(pipe: Any) -> None:
    clips = MemoryClips()
    made = run(pipe, "random:density=1", scenes=(Scene("x", 0), Scene("y", 1)), clips=clips)
    assert made.rows()[0]["identical"]
    assert made.rows()[0]["clips"] == 2
    first = clips.frames(made.dense.key, Scene("x", 0))
    assert np.array_equal(first, to_uint8(sample(pipe, "x", SAMPLING, seed=0).video))
    pair = [to_float(clips.frames(made.dense.key, scene)) for scene in made.scenes]
    assert made.strangers == pytest.approx([float(ssim_per_frame(*pair).mean())] * 2, abs=1e-5)


def test_progress_counts_clips_and_steps(pipe: Any) -> None:
    seen: list[Progress] = []
    run(pipe, "random", scenes=(Scene("x", 7),), on_progress=seen.append)
    assert seen == [
        Progress(f"{name}, seed 7", number, 2, step, 2)
        for number, name in ((1, "dense"), (2, "random"))
        for step in (1, 2)
    ]


def test_bad_method_fails_before_anything_is_generated(pipe: Any) -> None:
    seen: list[Progress] = []
    with pytest.raises(UsageError):
        run(pipe, "random", "svg:density=0.01", on_progress=seen.append)
    assert seen == []


def test_a_stopped_comparison_leaves_the_pipeline_and_goes_on(pipe: Any, tmp_path: Path) -> None:
    before = dict(pipe.transformer.attn_processors)
    clips = FolderClips(tmp_path)
    seen: list[str] = []

    def stop(now: Progress) -> None:
        if now.clip.startswith("random:density=0.5"):
            raise KeyboardInterrupt

    methods = ("random", "random:density=0.5")
    with pytest.raises(KeyboardInterrupt):
        run(pipe, *methods, clips=clips, on_progress=stop)
    after = pipe.transformer.attn_processors
    assert all(after[name] is processor for name, processor in before.items())
    made = run(pipe, *methods, clips=clips, on_progress=lambda now: seen.append(now.clip))
    assert set(seen) == {"random:density=0.5, seed 3"}
    whole = run(pipe, *methods)
    assert [row["psnr"] for row in made.rows()] == [row["psnr"] for row in whole.rows()]
    assert all(clip.sites for record in made.contenders for clip in record.clips)


def test_half_written_clips_and_other_settings_are_made_again(pipe: Any, tmp_path: Path) -> None:
    clips, seen = FolderClips(tmp_path), []
    made = run(pipe, "random", clips=clips)
    key = made.contenders[0].key
    clips.video_file(key, made.scenes[0]).with_suffix(".json").unlink()

    def tell(now: Progress) -> None:
        seen.append(now.clip)

    run(pipe, "random", clips=clips, on_progress=tell)
    assert set(seen) == {"random, seed 3"}
    run(pipe, "random", clips=clips, settings={"steps": 3}, on_progress=tell)
    assert set(seen) == {"random, seed 3", "dense, seed 3"}
    seen.clear()
    run(pipe, "random", clips=Forgetful(clips), on_progress=tell)
    assert set(seen) == {"random, seed 3", "dense, seed 3"}


def test_an_edited_preset_makes_its_clips_again(pipe: Any, tmp_path: Path) -> None:
    file, clips, made = tmp_path / "mine.toml", FolderClips(tmp_path / "out"), []
    one = Contender("mine", pipe, SparseRequest("mine", None, preset=str(file)))
    for density, note in ((0.9, "a"), (0.9, "b"), (0.3, "b")):
        parameters = {"density": density}
        SparseConfig(method="random", parameters=parameters, dense_steps=0, note=note).save(file)
        found = compare(Contender("dense", pipe), [one], [Scene("x", 3)], SAMPLING, JUDGES,
                        clips=clips)  # fmt: skip
        made.append((found.contenders[0].key, found.rows()[0]["density"]))
    assert made[0] == made[1]
    assert made[1] != made[2]
    assert made[2][1] == pytest.approx(0.3, abs=0.1)


def test_a_metric_that_became_available_is_measured_on_kept_clips(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = MemoryClips()
    options = (Contender("dense", pipe), [contender(pipe, "random")], [Scene("x", 3)], SAMPLING)
    compare(*options, JUDGES, clips=clips)

    class Fake(Lpips):
        def __init__(self) -> None:
            pass

        def __call__(self, video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
            return torch.full((len(video),), 0.25)

    monkeypatch.setattr("vidsparse.compare.sample", None)
    made = compare(*options, Judges(Fake()), clips=clips)
    assert made.rows()[0]["lpips"] == 0.25


def test_content_is_judged_on_kept_clips_of_dense_too(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, scene = MemoryClips(), Scene("a small red circle moves right over green stripes", 1)
    options = (Contender("dense", pipe), [contender(pipe, "random")], [scene], SAMPLING)
    first = compare(*options, JUDGES, clips=clips)
    assert first.dense_row()["content"] is None
    monkeypatch.setattr("vidsparse.compare.sample", None)
    # Nor is what was measured before measured again.
    monkeypatch.setattr("vidsparse.compare.compare_videos", None)
    made = compare(*options, replace(JUDGES, content=True), clips=clips)
    assert set(made.rows()[0]["content"]) == {"shape", "colour", "direction"}
    assert set(made.dense_row()["content"]) == {"shape", "colour", "direction"}
    assert made.rows()[0]["psnr"] == first.rows()[0]["psnr"]


@pytest.fixture
def painted(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    clips = FolderClips(tmp_path)

    def run(*labels: str, level: float = 0.5, seconds: float = 1.0) -> Comparison:
        clip = Clip(torch.full((2, 3, 16, 16), level), seconds, seconds)
        monkeypatch.setattr("vidsparse.compare.sample", lambda *_, **__: clip)
        others = [Contender(label, pipe) for label in labels]
        scenes = [Scene("x", 3)]
        return compare(Contender("dense", pipe), others, scenes, SAMPLING, JUDGES, clips=clips)

    monkeypatch.setattr("vidsparse.compare.warm_up", lambda *_, **__: None)
    return run


def test_methods_are_measured_against_the_dense_clip_that_is_there(
    painted: Any, tmp_path: Path
) -> None:
    made = painted("a", level=0.5)
    assert made.rows()[0]["identical"]
    FolderClips(tmp_path).video_file(made.dense.key, made.scenes[0]).unlink()
    assert painted("a", level=0.6).rows()[0]["psnr"] == pytest.approx(20, abs=0.5)


def test_a_method_timed_in_another_run_than_dense_is_named(painted: Any) -> None:
    assert not painted("a").rows()[0]["timed_apart"]
    made = painted("a", "b", seconds=2.0)
    assert [row["timed_apart"] for row in made.rows()] == [False, True]
    (line,) = [line for line in findings(document(made, {})) if "--fresh" in line]
    assert line.startswith("b: timed in another run than dense")


def test_floor_and_context_are_part_of_the_comparison(pipe: Any) -> None:
    floor = floor_contender("backend", "unused", pipe, "cpu", quiet=True)
    assert floor.label == "dense math kernel"
    method, other = run(pipe, "random", floor=floor).rows()
    assert other["role"] == "floor"
    # Another kernel only rounds differently.
    assert other["identical"] or other["psnr"] > 50
    assert method["verdict"] in ("undecided", "diverged")
    assert "dB" in method["reason"]


@pytest.mark.gpu
def test_floor_on_a_gpu_takes_text_encoders_that_its_kernel_refuses() -> None:
    pipe = load_pipeline("tiny", device=torch.device("cuda"), dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    floor = floor_contender("auto", "unused", pipe, "cuda", quiet=True)
    assert floor.label == "dense efficient kernel"
    _, other = run(pipe, "random", floor=floor).rows()
    assert not other["identical"]
    assert other["psnr"] > 30


@pytest.fixture
def preset(tmp_path: Path) -> str:
    path = tmp_path / "mine.json"
    SparseConfig(
        method="random",
        parameters={"density": 0.5},
        dense_steps=1,
        impl="reference",
        precision="8bit-sparse",
        cache={"name": "taylorseer", "parameters": {"cache_interval": 2}},
    ).save(path)
    return str(path)


def test_impl_and_precision_of_a_preset_hold_unless_given(pipe: Any, preset: str) -> None:
    request = SparseRequest("", None, preset=preset)
    for options, impl, precision in (
        ({}, "reference", "8bit-sparse"),
        ({"impl": "auto", "precision": "native"}, "auto", "native"),
    ):
        with replace(request, **options).enable(pipe) as handle:
            assert (handle._attention.impl, handle._attention.precision) == (impl, precision)
    assert parse_method("svg", PLAIN).impl is None


def test_watched_sites_have_the_settings_of_the_clips(
    pipe: Any, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, sampling = SparseRequest("", None, preset=preset), replace(SAMPLING, steps=8)
    seen: list[Any] = []

    def note(*args: Any, impl: Any) -> Any:
        seen.append(impl)
        return attend_8bit(*args, impl=impl)

    monkeypatch.setattr("vidsparse.attention.attend_8bit", note)
    with request.enable(pipe, record_sites=True) as handle:
        sample(pipe, "x", sampling, seed=0)
        sparse = [s for s, kept in handle.recorder.rows if isinstance(kept, torch.Tensor)]
    calls = len(seen)
    found = watch_sites(pipe, request, "x", sampling, seed=0)
    assert seen == ["reference"] * (2 * calls)
    assert not pipe.transformer.is_cache_enabled
    (table,) = found["transformers"]
    # The cache leaves whole steps out, in the clip and in its map.
    assert table["steps"] == sorted({site.step for site in sparse}) != list(range(1, 8))


def test_watched_sites_give_density_and_recall_by_head(pipe: Any) -> None:
    request = parse_method("random:density=0.5", PLAIN)
    found = watch_sites(pipe, request, "x", SAMPLING, seed=0)
    (table,) = found["transformers"]
    assert table["steps"] == [0, 1]
    density, recall = np.array(table["density"]), np.array(table["recall"])
    assert density.shape == recall.shape == (2, len(pipe.transformer.blocks), 2)
    assert density == pytest.approx(0.5, abs=0.1)
    assert ((recall > 0.2) & (recall < 0.9)).all()
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", ["height", "width", "num_frames", "steps"])
def test_zero_is_not_taken_for_not_given(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=0 must be at least 1"):
        Sampling(**{name: 0})


def test_no_guidance_is_not_taken_for_not_given() -> None:
    assert settle_sampling("tiny", None, Sampling(guidance=0.0)).guidance == 0


@pytest.mark.parametrize("guidance", [math.nan, math.inf, -math.inf, -0.5])
def test_guidance_that_is_no_scale_is_refused(guidance: float) -> None:
    with pytest.raises(UsageError, match="must be a finite number of at least 0"):
        Sampling(guidance=guidance)


def test_a_clip_of_nan_is_refused_instead_of_shown_black(pipe: Any) -> None:
    weight = pipe.transformer.proj_out.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(math.nan)
        with pytest.raises(UsageError, match="the clip of seed 3 holds NaN"):
            sample(pipe, "x", SAMPLING, seed=3)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_a_metric_that_is_no_number_is_named(pipe: Any) -> None:
    def broken(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return torch.full((len(video),), math.nan)

    dense, other = Contender("dense", pipe), Contender("other", pipe)
    with pytest.raises(UsageError, match="lpips of the clip of seed 0 against dense is nan"):
        compare(dense, [other], [Scene("x", 0)], SAMPLING, Judges(broken))


def test_timer_spans_all_transformer_calls_and_leaves_no_hooks() -> None:
    module = torch.nn.Linear(2, 2)
    with DenoiseTimer([module]) as timer:
        assert timer.seconds() == 0.0
        for _ in range(2):
            module(torch.zeros(1, 2))
    assert timer.seconds() > 0
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_timer_keeps_to_one_kind_of_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    # As with offloaded weights: on the CPU before the call, on the GPU after it.
    module, on_gpu = torch.nn.Linear(2, 2), [False, True]
    monkeypatch.setattr("vidsparse.generate._any_on_gpu", lambda _: on_gpu.pop(0))
    with DenoiseTimer([module]) as timer:
        module(torch.zeros(1, 2))
    assert timer.seconds() > 0


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
