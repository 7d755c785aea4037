"""``vidsparse metrics``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsparse import cli_common as common
from vidsparse.errors import UsageError

if TYPE_CHECKING:
    from vidsparse.quality import Quality
    from vidsparse.video import VideoFile

_NAMES = {
    "psnr": "PSNR, mean of frames (dB)",
    "psnr_pooled": "PSNR, pooled error (dB)",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "lpips": "LPIPS, AlexNet",
    "lpips_vgg": "LPIPS, VGG16",
    "flicker": "flicker, mean difference of frame changes",
    "warped_error": "flow-warped squared error beyond the reference's",
}

# SSIM's windows are filled up by reflecting 5 pixels of the border.
_LEAST_SIDE = 6


def metrics(
    video: Annotated[Path, typer.Argument(help="Video to judge.")],
    reference: Annotated[Path, typer.Argument(help="What it should look like.")],
    device: common.Device = "auto",
    json: common.JsonFlag = False,
) -> None:
    """Measure one video file against another: PSNR, SSIM, LPIPS, flicker."""
    from vidsparse.loading import pick_device
    from vidsparse.quality import compare_videos, load_lpips
    from vidsparse.video import read_video_file, to_float

    where = pick_device(device)
    files = [read_video_file(path) for path in (video, reference)]
    _check_match([video, reference], files)
    common.quiet_libraries()
    nets = [load_lpips(where, net=net) for net in ("alex", "vgg")]
    frames = [to_float(file.frames) for file in files]
    found = compare_videos(frames[0], frames[1], lpips=nets[0], lpips_vgg=nets[1])
    warning = _loss_warning([video, reference], files)
    if json:
        common.print_json(_document([video, reference], files, found, warning))
        return
    _print(files[0], found)
    if warning is not None:
        common.note(warning)


def _check_match(paths: list[Path], files: "list[VideoFile]") -> None:
    """Refuse videos of different size, length or rate; nothing is resized or cut."""
    a, b = files
    pairs = {
        "frames": (len(a.frames), len(b.frames)),
        "width": (a.frames.shape[2], b.frames.shape[2]),
        "height": (a.frames.shape[1], b.frames.shape[1]),
        "fps": (a.fps, b.fps),
    }
    unlike = [f"{name} {x:g} and {y:g}" for name, (x, y) in pairs.items() if abs(x - y) > 0.01]
    if unlike:
        raise UsageError(
            f"{paths[0]} and {paths[1]} differ in {', '.join(unlike)}; nothing is resized or cut: "
            "give two videos of one size, length and rate"
        )
    height, width = a.frames.shape[1:3]
    if min(height, width) < _LEAST_SIDE:
        raise UsageError(
            f"{paths[0]}: frames of {width}x{height} pixels are too few for SSIM; "
            f"give videos of at least {_LEAST_SIDE}x{_LEAST_SIDE}"
        )


def _loss_warning(paths: list[Path], files: "list[VideoFile]") -> str | None:
    lossy = [f"{path} ({file.codec})" for path, file in zip(paths, files, strict=True)
             if not file.lossless]  # fmt: skip
    if not lossy:
        return None
    return (
        f"{' and '.join(lossy)}: a lossy codec; its own error costs decibels and blurs what is "
        "measured. For measuring, write lossless .mkv files (generate --out a.mkv)"
    )


def _document(
    paths: list[Path], files: "list[VideoFile]", found: "Quality", warning: str | None
) -> dict[str, Any]:
    import math

    means = {
        name: None if value is None or math.isinf(value) else value
        for name, value in found.means().items()
    }
    return {
        "video": str(paths[0]),
        "reference": str(paths[1]),
        "codecs": [file.codec for file in files],
        "fps": files[0].fps,
        "warning": warning,
        "identical": found.identical,
        "means": means,
        "frames": found.as_dict(),
    }


def _print(file: "VideoFile", found: "Quality") -> None:
    frames, height, width = file.frames.shape[:3]
    typer.echo(f"{frames} frames, {width}x{height}, {file.fps:g} fps")
    notes = {"lpips": found.lpips_note, "lpips_vgg": found.lpips_vgg_note}
    for name, value in found.means().items():
        missing = notes.get(name) or "unavailable: the frames are too small or too few"
        scales = f" ({found.ms_ssim_scales} of 5 scales)" if name == "ms_ssim" else ""
        typer.echo(f"{_NAMES[name] + scales:<50} {missing if value is None else f'{value:.6g}'}")
