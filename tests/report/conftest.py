import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsparse.clips import ClipFacts, FolderClips, Scene, SiteDensity
from vidsparse.quality import compare_videos
from vidsparse.report import Results, clips_in, document, maps_file, write_json, write_results
from vidsparse.scores import Comparison, Record
from vidsparse.video import to_float

FRAMES, SIZE = 12, 64
META = {
    "model": "tiny", "dtype": "float32", "device": "a CPU", "driver": None, "threads": 1,
    "python": "3.11", "torch": "2", "versions": {"torch": "2"}, "commit": None, "fps": 12,
    "command": "vidsparse compare --method svg", "date": "2026-11-25T12:00:00+00:00",
    "sampling": {"height": SIZE, "width": SIZE},
}  # fmt: skip
SCENES = (Scene("a <b>red</b> ball", 0), Scene("a <b>red</b> ball", 1))
LABELS = ("svg", "random:density=0.3", "dense bfloat16")
NOISE = {"svg": 6, "random:density=0.3": 40, "dense bfloat16": 1}


def dense_frames(seed: int) -> np.ndarray:
    """A bright square that moves; its corner tells the frame: 20 levels a frame."""
    frames = np.full((FRAMES, SIZE, SIZE, 3), 60, np.uint8)
    for t in range(FRAMES):
        frames[t, 20:40, 4 + 3 * t : 24 + 3 * t] = (220, 90 + 40 * seed, 60)
        frames[t, :16, :16] = 10 + 20 * t
    return frames


def noisy(frames: np.ndarray, level: int) -> np.ndarray:
    noise = np.random.default_rng(level).normal(0, level, frames.shape)
    made = np.clip(frames + noise, 0, 255).astype(np.uint8)
    made[:, :16, :16] = frames[:, :16, :16]
    return made


def facts(seconds: float, **more: Any) -> ClipFacts:
    return ClipFacts(denoise_seconds=seconds, total_seconds=seconds + 1, **more)


def _calls() -> dict[str, Any]:
    return {"method": "x", "density": 0.3, "overall_density": 0.44, "calls": 9}


def _keep(clips: FolderClips, label: str, seconds: Sequence[float]) -> Record:
    record = Record(label, f"{label.replace(':', '-')}-key")
    for scene, duration in zip(SCENES, seconds, strict=True):
        truth = dense_frames(scene.seed)
        if label == "dense":
            frames, found = truth, facts(duration, content=_content(right=True))
        else:
            frames = noisy(truth, NOISE[label])
            quality = compare_videos(to_float(frames), to_float(truth), lpips="unavailable: here")
            sparse = label != "dense bfloat16"
            sites = [SiteDensity("transformer", i, j, 0.3) for i in (1, 2) for j in range(3)]
            found = facts(
                duration, quality=quality, content=_content(right=label != "random:density=0.3"),
                calls=_calls() if sparse else None, sites=tuple(sites) if sparse else (),
            )  # fmt: skip
        clips.keep(record.key, scene, frames, found)
        record.clips.append(found)
    return record


def _content(*, right: bool) -> dict[str, bool]:
    return {"shape": right, "colour": True, "direction": True}


def make_results(folder: Path) -> Results:
    """Write what a comparison of two methods and a floor on two clips leaves."""
    clips = clips_in(folder, 12)
    dense = _keep(clips, "dense", (4.0, 4.2))
    made = [_keep(clips, label, (2.0 + i, 2.2 + i)) for i, label in enumerate(LABELS)]
    comparison = Comparison(SCENES, dense, tuple(made[:2]), made[2], (0.2, 0.2))
    maps = [[[0.2, 0.4] for _ in range(3)] for _ in range(2)]
    maps[0][1] = [None, None]
    table = {"transformer": "transformer", "steps": [1, 2], "density": maps, "recall": maps}
    write_json(maps_file(folder, made[0].key, SCENES[0]), {"transformers": [table]})
    write_results(folder, document(comparison, META))
    return Results.load(folder)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return make_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def open_page(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Path], AbstractContextManager[Any]]:
    """Open pages in a headless browser; skips where there is none."""
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).parent / "browser.py")
    assert spec is not None
    assert spec.loader is not None
    browser = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(browser)
    if browser.browser_path() is None:
        pytest.skip(f"this machine has no browser: none of {', '.join(browser.NAMES)}")
    return lambda page: browser.Page(page, tmp_path_factory.mktemp("profile"))
