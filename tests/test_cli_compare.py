from pathlib import Path
from typing import Any

import pytest

from vidsparse import cli_compare
from vidsparse.clips import MemoryClips, Scene
from vidsparse.compare import Contender, Judges, compare
from vidsparse.generate import Sampling
from vidsparse.pipelines.testing import wan
from vidsparse.report import maps_file
from vidsparse.request import SparseRequest, parse_method

# 256 tokens: the fewest that are attended to sparsely.
SAMPLING = Sampling(height=128, width=128, num_frames=13, steps=2)
META = {
    "model": "/m", "dtype": "float32", "sampling": {}, "device": "a CPU", "torch": "2",
    "commit": None, "versions": {"vidsparse": "0.1", "diffusers": "0.40", "lpips": "0.1"},
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = wan(heads=2, head_dim=32).pipe
    made.set_progress_bar_config(disable=True)
    return made


def test_clips_of_another_version_or_model_are_not_taken(pipe: Any) -> None:
    def settings(pipe: Any = pipe, **versions: str) -> dict[str, Any]:
        meta = {**META, "versions": {**META["versions"], **versions}}
        return cli_compare._settings(meta, pipe)

    assert settings() == settings(lpips="0.2")
    assert settings() != settings(vidsparse="0.2")
    assert settings() != settings(diffusers="0.41")
    assert settings() != settings(wan(heads=4, head_dim=16).pipe)


def test_maps_are_of_their_scene_and_fresh_ones_are_made_again(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Contender("r", pipe, parse_method("random", SparseRequest(label="", method=None)))
    judges, watched = Judges(lpips="unavailable"), []

    def watch(*args: Any, seed: int) -> dict[str, int]:
        watched.append(seed)
        return {"seed": seed}

    monkeypatch.setattr("vidsparse.watched_sites.watch_sites", watch)
    clips = MemoryClips()
    for seed, fresh in ((0, False), (7, False), (7, False), (7, True)):
        scene = Scene("a", seed)
        made = compare(Contender("dense", pipe), [method], [scene], SAMPLING, judges, clips=clips)
        cli_compare._record_maps(made, [method], scene, SAMPLING, tmp_path, fresh=fresh, quiet=True)
        assert maps_file(tmp_path, made.contenders[0].key, scene).is_file()
    assert watched == [0, 7, 7]
