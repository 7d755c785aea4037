import subprocess
import sys
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.files import replacing, write_text
from vidsparse.pictures import contact_sheet, side_by_side, write_png
from vidsparse.video import (
    read_video,
    read_video_file,
    to_float,
    to_uint8,
    write_frames,
    write_video,
)


def moving_square(frames: int, height: int, width: int) -> Tensor:
    video = torch.full((frames, 3, height, width), 0.2)
    for i in range(frames):
        video[i, 0, 8:24, 2 * i : 2 * i + 16] = 0.9
    return video


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_round_trip_keeps_size_and_content(tmp_path: Path, size: tuple[int, int]) -> None:
    video = moving_square(9, *size)
    write_video(tmp_path / "a.mp4", video, fps=8)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == (9, 3, size[0] + size[0] % 2, size[1] + size[1] % 2)
    error = (back[:, :, : size[0], : size[1]] - video).square().mean()
    assert -10 * torch.log10(error) > 25


def test_video_is_h264_with_the_rate_asked_for(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(8, 32, 32), fps=8)
    meta = next(imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4")))
    assert meta["codec"] == "h264"
    assert meta["fps"] == 8
    assert meta["duration"] == pytest.approx(1.0, abs=0.01)


def noise(frames: int = 5, height: int = 33, width: int = 47) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_lossless_frames_read_back_exactly(tmp_path: Path) -> None:
    write_frames(tmp_path / "a.mkv", noise(), fps=24)
    back = read_video_file(tmp_path / "a.mkv")
    assert np.array_equal(back.frames, noise())
    assert (back.fps, back.codec, back.lossless) == (24, "ffv1", True)
    assert torch.equal(read_video(tmp_path / "a.mkv"), to_float(noise()))


def test_mp4_keeps_colours(tmp_path: Path) -> None:
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.2, 0.2, 0.9], [0.5, 0.5, 0.5]])
    video = colours.view(4, 3, 1, 1).expand(4, 3, 32, 32).contiguous()
    write_video(tmp_path / "a.mp4", video)
    back = read_video_file(tmp_path / "a.mp4")
    assert not back.lossless
    assert (to_float(back.frames) - video).abs().max() < 3 / 255
    # Players that are told the colour space do not guess it.
    exe = imageio_ffmpeg.get_ffmpeg_exe()
    told = subprocess.run([exe, "-i", tmp_path / "a.mp4"], capture_output=True, text=True).stderr
    assert "yuv420p(tv, bt709" in told


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_cut_off_files_are_refused(tmp_path: Path, name: str, share: float) -> None:
    write_frames(tmp_path / name, noise(12))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UsageError, match=r"is damaged|cannot be decoded"):
        read_video(tmp_path / name)


def test_a_flipped_bit_in_a_lossless_file_is_found(tmp_path: Path) -> None:
    write_frames(tmp_path / "a.mkv", noise())
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.mkv").write_bytes(data)
    with pytest.raises(UsageError, match="is damaged"):
        read_video(tmp_path / "a.mkv")


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 8, 8, 1), (8, 8, 3)])
def test_empty_videos_are_not_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="holds no"):
        write_frames(tmp_path / "a.mkv", np.zeros(shape, np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_earlier_video(tmp_path: Path) -> None:
    # A limit on the size of files fails as a full disk does, without one.
    path = tmp_path / "a.mkv"
    write_frames(path, noise(2))
    before = path.read_bytes()
    script = (
        "import resource, signal, sys, numpy as np\nfrom pathlib import Path\n"
        "from vidsparse.files import write_text\nfrom vidsparse.video import write_frames\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "frames = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)\n"
        "path = Path(sys.argv[1])\n"
        "for write in (lambda: write_frames(path, frames), lambda: write_text(path, 'x' * 30_000)):"
        "\n    try: write()\n    except ValueError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"UsageError cannot write {path}: ") for line in lines)
    # Python gives programs it starts the default action back: the limit kills ffmpeg.
    assert "ffmpeg was stopped by signal" in lines[0]
    assert "File too large" in lines[1]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_values_are_rounded_and_clipped() -> None:
    video = (
        torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 127.4 / 255]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    )
    assert to_uint8(video)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 127]


def test_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        _break_off(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _break_off(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError


def test_written_files_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "text")
    (tmp_path / "b.txt").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("a.txt", "b.txt")}
    assert len(modes) == 1


def test_other_formats_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not end in \.mp4 .* or \.mkv"):
        write_video(tmp_path / "a.gif", moving_square(2, 32, 32))
    (tmp_path / "b.mp4").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write_video(tmp_path / "b.mp4", moving_square(2, 32, 32))


def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no writable folder"):
        write_video(tmp_path / "file" / "a.mp4", moving_square(2, 32, 32))


def test_missing_and_broken_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no video"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(UsageError, match="cannot be decoded"):
        read_video(tmp_path / "bad.mp4")


def test_many_clips_are_laid_out_in_rows_that_an_encoder_takes(tmp_path: Path) -> None:
    clips = [(str(i), np.full((1, 720, 1280, 3), 10 * i, np.uint8)) for i in range(13)]
    assert side_by_side(clips[:12]).shape == (1, 742, 12 * 1284 - 4, 3)
    frames = side_by_side(clips)
    assert frames.shape == (1, 5 * 746 - 4, 3 * 1284 - 4, 3)
    # The last row has one clip, then white.
    assert (frames[0, -1, 100] == 120).all()
    assert (frames[0, -1, -100] == 255).all()
    write_frames(tmp_path / "a.mp4", frames)


def test_side_by_side_shows_every_clip_under_its_label() -> None:
    shape = (4, 32, 48, 3)
    clips = [("dense", np.zeros(shape, np.uint8)), ("svg", np.full(shape, 128, np.uint8))]
    frames = side_by_side(clips)
    assert frames.dtype == np.uint8
    assert len(frames) == 4
    left, right = np.array_split(frames[:, -100:], 2, axis=2)
    assert (left[:, :, :200] == 0).all()
    assert (right[:, :, -200:] == 128).all()
    label = frames[0, :20, : frames.shape[2] // 2]
    assert (label < 100).any()


def test_contact_sheet_shows_first_and_last_frame() -> None:
    ramp = torch.linspace(0, 1, 9).view(9, 1, 1, 1).expand(9, 3, 32, 32)
    sheet = contact_sheet([("ramp", to_uint8(ramp))], columns=3)
    bottom = sheet[-1]
    assert bottom[0, 0] == 0
    assert bottom[bottom.shape[0] // 2, 0] == 128
    assert bottom[-1, 0] == 255


def test_png_keeps_colours(tmp_path: Path) -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 0] = 200
    write_png(tmp_path / "a.png", image)
    back = cv2.cvtColor(cv2.imread(str(tmp_path / "a.png")), cv2.COLOR_BGR2RGB)
    assert (back == image).all()
