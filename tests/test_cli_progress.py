from pathlib import Path

import pytest

from vidsparse.cli_progress import TimeLeft, clip_progress, duration_left
from vidsparse.clips import Scene
from vidsparse.compare import Progress
from vidsparse.errors import UsageError
from vidsparse.prompts import read_prompts, read_scenes


def test_time_left_leaves_the_warm_up_out() -> None:
    clock = iter([0.0, 100.0, 102.0, 110.0])
    left = TimeLeft(now=lambda: next(clock))
    # The first step ends 100 s in, after the warm-up; each step then takes 2 s, 18 are to come.
    assert left.tell(Progress("a", 1, 2, 1, 10)) == ""
    assert left.tell(Progress("a", 1, 2, 2, 10)) == "about 36 s left"
    assert left.tell(Progress("a", 1, 2, 6, 10)) == "about 28 s left"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89, "89 s"), (300, "5 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_durations_are_said_as_people_do(seconds: float, said: str) -> None:
    assert duration_left(seconds) == f"about {said} left"


def test_logs_get_one_line_per_clip(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Progress(f"c{clip}", clip, 2, step, 3) for clip in (1, 2) for step in (1, 2, 3)]
    for quiet, lines in ((False, 2), (True, 0)):
        with clip_progress(quiet=quiet) as tell:
            for step in steps:
                tell(step)
        found = capsys.readouterr()
        assert found.out == ""
        assert len(found.err.splitlines()) == lines
        assert quiet or "clip 2 of 2: c2; about 0 s left" in found.err


def test_prompts_come_from_a_file_with_every_seed(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# two\na cat\n\n  a dog \na cat\n")
    assert read_scenes(["a fox"], file, 5, 2) == [
        Scene(prompt, seed) for prompt in ("a fox", "a cat", "a dog") for seed in (5, 6)
    ]
    assert read_prompts(file) == ["a cat", "a dog"]


@pytest.mark.parametrize("data", [b"", b"# nothing\n", b"\xff\xfe\x00"])
def test_files_without_prompts_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "prompts.txt").write_bytes(data)
    with pytest.raises(UsageError, match=r"holds no prompt|cannot read prompts"):
        read_scenes([], tmp_path / "prompts.txt", 0, 1)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# animals\na cat\n", encoding="utf-8-sig")
    assert read_prompts(file) == ["a cat"]
