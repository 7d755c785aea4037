"""What a measurement was made with: every results file carries it."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "vidsparse",
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "scikit-learn",
    "opencv-python-headless",
    "imageio-ffmpeg",
    "lpips",
    "torchmetrics",
)


def run_meta(device: torch.device | str, command: str | None = None) -> dict[str, Any]:
    """Describe the run that makes a results file.

    Args:
        device: what the measured work ran on.
        command: the command that reproduces it; this process's by default.

    Returns:
        Device, driver, versions, commit, command and date (UTC).
    """
    return {
        "device": device_name(torch.device(device)),
        "driver": driver(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": package_version("triton"),
        "versions": {name: package_version(name) for name in PACKAGES},
        "commit": commit(),
        "command": this_command() if command is None else command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """Return the product name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def driver() -> str | None:
    """Return the NVIDIA driver's version; None without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = _output(command, Path.cwd())
    return lines.splitlines()[0] if lines else None


def package_version(name: str) -> str | None:
    """Return an installed package's version; None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the commit of the checkout this package runs from; None for an installed wheel.

    A copy of a checkout without git is told by the environment variable ``VIDSPARSE_COMMIT``.
    """
    folder = Path(__file__).resolve().parent
    inside = _output(["git", "ls-files", Path(__file__).name], folder)
    if not inside:
        return os.environ.get("VIDSPARSE_COMMIT") or None
    head = _output(["git", "rev-parse", "--short=12", "HEAD"], folder)
    changed = _output(["git", "status", "--porcelain", "--untracked-files=no"], folder)
    return f"{head}+changes" if head and changed else head


def this_command() -> str:
    """Return the command line of this process as a user would type it."""
    return shlex.join(["vidsparse", *sys.argv[1:]])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _output(command: list[str], folder: Path) -> str | None:
    """Return what a command prints, stripped; None when it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
