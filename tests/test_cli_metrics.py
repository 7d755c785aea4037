import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vidsparse import cli
from vidsparse.quality import compare_videos
from vidsparse.video import to_float, write_frames


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["vidsparse", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return Done(int(stop.value.code or 0), captured.out, captured.err)

    return run


def frames(count: int = 4, height: int = 32, width: int = 48) -> np.ndarray:
    smooth = np.linspace(0, 255, width)[None, None, :, None] * np.ones((count, height, 1, 3))
    return smooth.astype(np.uint8)


def noisy(clean: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 5, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8)


Run = Callable[..., Done]


def test_metrics_of_lossless_files_are_those_of_the_frames(run: Run, tmp_path: Path) -> None:
    a, b = tmp_path / "a.mkv", tmp_path / "b.mkv"
    write_frames(a, noisy(frames()))
    write_frames(b, frames())
    done = run("metrics", a, b, "--json")
    found = json.loads(done.out)
    pair = to_float(noisy(frames())), to_float(frames())
    expected = compare_videos(*pair, lpips="").means()
    assert found["means"]["psnr"] == expected["psnr"]
    assert found["means"]["flicker"] == expected["flicker"]
    assert found["warning"] is None
    assert done.err == ""
    text = run("metrics", a, b)
    assert "4 frames, 48x32, 16 fps" in text.out
    assert f"{expected['psnr']:.6g}" in text.out
    assert "of 5 scales" in text.out
    assert text.err == ""


def test_frames_smaller_than_the_window_of_ssim_are_refused(run: Run, tmp_path: Path) -> None:
    write_frames(tmp_path / "a.mkv", frames(height=4))
    done = run("metrics", tmp_path / "a.mkv", tmp_path / "a.mkv")
    assert done.code == 2
    assert "48x4 pixels are too few for SSIM" in done.err
    assert len(done.err.splitlines()) == 1


def test_equal_files_are_identical(run: Run, tmp_path: Path) -> None:
    write_frames(tmp_path / "a.mkv", frames())
    found = json.loads(run("metrics", tmp_path / "a.mkv", tmp_path / "a.mkv", "--json").out)
    assert found["identical"]
    assert found["means"]["psnr"] is None
    assert found["means"]["ssim"] == pytest.approx(1.0)


def test_lossy_codecs_are_warned_of(run: Run, tmp_path: Path) -> None:
    write_frames(tmp_path / "a.mp4", frames())
    write_frames(tmp_path / "b.mkv", frames())
    done = run("metrics", tmp_path / "a.mp4", tmp_path / "b.mkv")
    assert done.code == 0
    assert "a.mp4 (h264)" in done.err
    assert "costs decibels" in done.err
    assert "b.mkv" not in done.err


@pytest.mark.parametrize(
    ("other", "fps", "said"),
    [
        (frames(5), 16, "frames 4 and 5"),
        (frames(width=64), 16, "width 48 and 64"),
        (frames(height=48), 16, "height 32 and 48"),
        (frames(), 24, "fps 16 and 24"),
    ],
)
def test_unlike_videos_are_refused(
    run: Run, tmp_path: Path, other: np.ndarray, fps: float, said: str
) -> None:
    write_frames(tmp_path / "a.mkv", frames())
    write_frames(tmp_path / "b.mkv", other, fps=fps)
    done = run("metrics", tmp_path / "a.mkv", tmp_path / "b.mkv")
    assert done.code == 2
    assert said in done.err
    assert "nothing is resized or cut" in done.err
    assert done.out == ""


def test_damaged_video_is_refused(run: Run, tmp_path: Path) -> None:
    write_frames(tmp_path / "a.mkv", frames())
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "b.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    done = run("metrics", tmp_path / "a.mkv", tmp_path / "b.mkv")
    assert done.code == 2
    assert "is damaged after" in done.err
