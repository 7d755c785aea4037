"""Read and write videos; lay clips side by side and on contact sheets."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor

from vidsparse.errors import UsageError

_LABEL_HEIGHT = 22
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GAP = 4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the name only if the block succeeds.

    Args:
        path: where the file shall end up; its folder is made when missing.

    Raises:
        UsageError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=".", dir=path.parent)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; the result gets the rights any new file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_uint8(video: Tensor) -> np.ndarray:
    """Turn (F, 3, H, W) floats in [0, 1] into (F, H, W, 3) uint8; values outside are clipped."""
    rounded = (video.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(0, 2, 3, 1).cpu().numpy())


def write_video(path: Path, video: Tensor, *, fps: float = 16) -> None:
    """Write an H.264 MP4, whole or not at all.

    Args:
        path: ends in ``.mp4``.
        video: (F, 3, H, W) floats in [0, 1]; odd sizes lose nothing, the last row or column
            is repeated because H.264's 4:2:0 needs even ones.
        fps: frames per second.

    Raises:
        UsageError: the name does not end in .mp4 or the folder cannot be written to.
    """
    write_frames(path, to_uint8(video), fps=fps)


def write_frames(path: Path, frames: np.ndarray, *, fps: float = 16) -> None:
    """Do as ``write_video`` with (F, H, W, 3) uint8 frames."""
    check_video_name(path)
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with replacing(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (frames.shape[2], frames.shape[1]),
            fps=fps,
            codec="libx264",
            quality=8,
            macro_block_size=1,
            ffmpeg_log_level="error",
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()


def check_video_name(path: Path) -> None:
    """Refuse names that cannot become an MP4, before any work is done.

    Raises:
        UsageError: the name does not end in .mp4, or cannot be written.
    """
    if path.suffix.lower() != ".mp4":
        raise UsageError(f"{path} does not end in .mp4, the only format written; rename it")
    check_file_name(path)


def check_file_name(path: Path) -> None:
    """Refuse names that cannot become a file, before any work is done.

    Raises:
        UsageError: it is a folder, or lies in one that cannot be made or written to.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(f"cannot write {path}: {nearest} is no writable folder; choose another")


def read_video(path: Path) -> Tensor:
    """Read a video.

    Args:
        path: any file ffmpeg can decode.

    Returns:
        (F, 3, H, W) float32 in [0, 1].

    Raises:
        UsageError: the file is missing or cannot be decoded.
    """
    if not path.is_file():
        raise UsageError(f"there is no video {path}; check the path")
    reader = imageio_ffmpeg.read_frames(str(path))
    try:
        width, height = next(reader)["size"]
        frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    except (OSError, StopIteration) as error:
        raise UsageError(f"{path} cannot be decoded as a video; give an MP4") from error
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255


def side_by_side(clips: Sequence[tuple[str, Tensor]]) -> np.ndarray:
    """Lay clips next to each other under their labels.

    Args:
        clips: label and (F, 3, H, W) floats in [0, 1] each, all of one shape.

    Returns:
        (F, H', W', 3) uint8; small clips are enlarged to be seen.
    """
    columns = [_labelled(label, to_uint8(video)) for label, video in clips]
    return _join(columns, axis=2)


def contact_sheet(clips: Sequence[tuple[str, Tensor]], *, columns: int = 6) -> np.ndarray:
    """Lay out evenly spaced frames: one row per clip, time from left to right.

    Args:
        clips: label and (F, 3, H, W) floats in [0, 1] each.
        columns: frames shown of each clip, at most.

    Returns:
        (H', W', 3) uint8.
    """
    rows = []
    for label, video in clips:
        picked = torch.linspace(0, video.shape[0] - 1, min(columns, video.shape[0])).round().long()
        frames = _enlarged(to_uint8(video[picked]))
        strip = _join([frame[None] for frame in frames], axis=2)
        rows.append(np.concatenate([_label_bar(label, strip.shape[2])[None], strip], axis=1))
    return np.asarray(_join(rows, axis=1)[0])


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
    """Encode an (H, W, 3) uint8 RGB picture as PNG."""
    return bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1])


def _labelled(label: str, frames: np.ndarray) -> np.ndarray:
    frames = _enlarged(frames)
    bar = _label_bar(label, frames.shape[2])
    return np.concatenate([np.repeat(bar[None], len(frames), axis=0), frames], axis=1)


def _enlarged(frames: np.ndarray, least: int = 240) -> np.ndarray:
    """Repeat pixels until a frame's shorter side has ``least`` pixels."""
    factor = max(1, round(least / min(frames.shape[1:3])))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _label_bar(label: str, width: int) -> np.ndarray:
    bar = np.full((_LABEL_HEIGHT, width, 3), 255, np.uint8)
    (text_width, _), _ = cv2.getTextSize(label, _FONT, 0.45, 1)
    scale = 0.45 * min(1.0, (width - 8) / max(text_width, 1))
    cv2.putText(bar, label, (4, 15), _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def _join(parts: Sequence[np.ndarray], *, axis: int) -> np.ndarray:
    """Concatenate with a white gap between parts."""
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=axis)
