"""Read and write videos: H.264 for people, lossless FFV1 for measuring."""

import errno
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.files import check_file_name, replacing

# Codecs that give back every frame exactly, by ffmpeg's names.
LOSSLESS_CODECS = ("ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png", "qtrle")

# BT.709, said in the file: players guess, and guess differently, where nothing is said.
_BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
TO_YUV = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"
_ENCODERS = {
    ".mp4": (
        *("-vf", f"{TO_YUV},format=yuv420p", "-c:v", "libx264", "-crf", "12"),
        *("-preset", "medium", "-color_range", "tv", *_BT709, "-movflags", "+faststart"),
    ),
    # Every frame with its own checksums, so that damage is found; bgr0 is FFV1's 8-bit RGB.
    ".mkv": ("-c:v", "ffv1", "-level", "3", "-g", "1", "-slicecrc", "1", "-pix_fmt", "bgr0"),
}


def to_uint8(video: Tensor) -> np.ndarray:
    """Turn (F, 3, H, W) floats in [0, 1] into (F, H, W, 3) uint8; values outside are clipped."""
    rounded = (video.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(0, 2, 3, 1).cpu().numpy())


def to_float(frames: np.ndarray) -> Tensor:
    """Turn (F, H, W, 3) uint8 into (F, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def write_video(path: Path, video: Tensor, *, fps: float = 16) -> None:
    """Write a video, whole or not at all.

    Args:
        path: ends in ``.mp4`` (H.264: plays everywhere, loses a little) or ``.mkv`` (FFV1:
            reads back exactly, for measuring).
        video: (F, 3, H, W) floats in [0, 1]. In an MP4 the last row or column of an odd size is
            repeated, because H.264's 4:2:0 needs even ones.
        fps: frames per second.

    Raises:
        UsageError: the name ends otherwise, there is no frame, or it cannot be written.
    """
    write_frames(path, to_uint8(video), fps=fps)


def write_frames(path: Path, frames: np.ndarray, *, fps: float = 16) -> None:
    """Do as ``write_video`` with (F, H, W, 3) uint8 frames."""
    check_video_name(path)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
        raise UsageError(f"cannot write {path}: {frames.shape} holds no (F, H, W, 3) frames")
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        height, width = frames.shape[1:3]
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with replacing(path) as temporary:
        encode(temporary, frames, fps, _ENCODERS[suffix])


def encode(path: Path, frames: np.ndarray, fps: float, options: Sequence[str]) -> None:
    """Let ffmpeg encode (F, H, W, 3) uint8 frames with the options given.

    Raises:
        OSError: ffmpeg fails, with its reason; ``replacing`` makes one line of it.
    """
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-")
    failure, _ = _ffmpeg(("-y", *raw, "-an", *options, str(path)), frames)
    if failure is not None:
        raise OSError(errno.EIO, failure)


def _ffmpeg(arguments: Sequence[str], frames: np.ndarray | None = None) -> tuple[str | None, bytes]:
    """Run ffmpeg; return its complaint, None when it had none, and its standard output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", *arguments]
    source = None if frames is None else np.ascontiguousarray(frames).data
    done = subprocess.run(command, input=source, capture_output=True, check=False)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == 0 and not lines:
        return None, done.stdout
    killed = f"ffmpeg was stopped by signal {-done.returncode}"
    failed = killed if done.returncode < 0 else f"ffmpeg ended with {done.returncode}"
    return (lines[0] if lines else failed), done.stdout


def check_video_name(path: Path) -> None:
    """Refuse names that cannot become a video, before any work is done.

    Raises:
        UsageError: the name ends in neither .mp4 nor .mkv, or cannot be written.
    """
    if path.suffix.lower() not in _ENCODERS:
        raise UsageError(f"{path} does not end in .mp4 (for people) or .mkv (lossless); rename it")
    check_file_name(path)


@dataclass(frozen=True)
class VideoFile:
    """A decoded video file.

    Attributes:
        frames: (F, H, W, 3) uint8.
        fps: frames per second.
        codec: ffmpeg's name, such as "h264".
    """

    frames: np.ndarray
    fps: float
    codec: str

    @property
    def lossless(self) -> bool:
        """Whether the codec gives back what was encoded."""
        return self.codec in LOSSLESS_CODECS


def read_video(path: Path) -> Tensor:
    """Read a video.

    Args:
        path: any file ffmpeg can decode.

    Returns:
        (F, 3, H, W) float32 in [0, 1].

    Raises:
        UsageError: the file is missing, damaged or empty.
    """
    return to_float(read_video_file(path).frames)


def read_video_file(path: Path) -> VideoFile:
    """Read a video with its rate and codec; arguments and errors as ``read_video``."""
    if not path.is_file():
        raise UsageError(f"there is no video {path}; check the path")
    reader = imageio_ffmpeg.read_frames(str(path))
    try:
        meta = next(reader)
    except (OSError, StopIteration, RuntimeError) as error:
        raise UsageError(f"{path} cannot be decoded as a video; give an MP4 or MKV") from error
    finally:
        reader.close()
    width, height = meta["size"]
    strict = ("-err_detect", "explode", "-xerror")
    raw = ("-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24")
    failure, data = _ffmpeg((*strict, "-i", str(path), *raw, "-"))
    frames = len(data) // (width * height * 3)
    if failure is not None:
        raise UsageError(f"{path} is damaged after {frames} frames ({failure}); make it anew")
    if frames == 0:
        raise UsageError(f"{path} holds no frames; make it anew")
    shape = (frames, height, width, 3)
    pixels = np.frombuffer(data, np.uint8).reshape(shape).copy()
    return VideoFile(pixels, float(meta["fps"]), meta["codec"].rstrip(","))
