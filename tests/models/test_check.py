import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from scenes import render, sample_scenes

from vidsparse.models import check
from vidsparse.models.check import CheckSettings, batch_for, check_model
from vidsparse.models.content import held_out_captions


@dataclass
class Painter:
    """Stands in for a pipeline: answers each prompt with a clip; remembers the seeds."""

    clips: dict[str, torch.Tensor]
    seeds: list[int] = field(default_factory=list)

    def __call__(self, prompts, *, generator, **_):
        self.seeds += [one.initial_seed() for one in generator]
        return SimpleNamespace(frames=torch.stack([self.clips[prompt] for prompt in prompts]))


@pytest.fixture
def painter(monkeypatch):
    """A perfect painter, and the captions it can paint as the held-out ones."""
    scenes, captions = sample_scenes(8, torch.Generator().manual_seed(3), check=True)
    video = (render(scenes, frames=9, height=64, width=96) + 1) / 2
    monkeypatch.setattr(check, "held_out_captions", lambda count, seed: captions[:count])
    clips = {str(c): v.movedim(0, 1) for c, v in zip(captions, video, strict=True)}
    return Painter(clips)


def test_truth_scores_full_marks_and_grey_none(painter):
    settings = CheckSettings(clips=8, batch=3)
    result = check_model(painter, settings, floor_pipe=painter)
    assert [result[key] for key in ("shape", "colour", "direction")] == [1.0, 1.0, 1.0]
    assert result["clips"] == 8
    assert result["floor_psnr"] == 100.0
    grey = Painter({text: torch.full_like(clip, 0.5) for text, clip in painter.clips.items()})
    result = check_model(grey, settings, floor_pipe=painter)
    assert [result[key] for key in ("shape", "colour", "direction")] == [0.0, 0.0, 0.0]
    assert 0 < result["floor_psnr"] < 30


def test_clips_have_the_same_noise_in_any_batch(painter):
    done = []
    check_model(
        painter, CheckSettings(clips=5, seed=7, batch=2), progress=lambda *x: done.append(x)
    )
    assert painter.seeds == [7, 8, 9, 10, 11]
    assert done == [(2, 5), (4, 5), (5, 5)]
    assert batch_for(torch.device("cpu"), 2304) == 1
    assert batch_for(torch.device("cuda"), 2304) > batch_for(torch.device("cuda"), 33600) >= 1


def test_held_out_captions_repeat_and_vary():
    assert held_out_captions(5, 0) == held_out_captions(5, 0) != held_out_captions(5, 1)


@pytest.mark.usefixtures("untrained", "small_card")
def test_command_prints_accuracies(capsys, monkeypatch):
    from vidsparse import cli

    monkeypatch.setattr(
        "sys.argv", ["vidsparse", "models", "--check", "tiny", "--clips=1", "--json"]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    result = json.loads(capsys.readouterr().out)
    assert list(result)[:6] == ["shape", "colour", "direction", "clips", "seconds", "floor_psnr"]
    assert result["clips"] == 1
    assert result["settings"]["num_frames"] == 17
    assert {result["dtype"], result["floor_dtype"]} == {"float32", "bfloat16"}
