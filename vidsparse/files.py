"""Write files whole or not at all, and refuse names and values that cannot become one."""

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidsparse.errors import UsageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the name only if the block succeeds.

    Args:
        path: where the file shall end up; its folder is made when missing.

    Raises:
        UsageError: the folder cannot be written to, or the disk fills up while writing.
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
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; make room, or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return standard JSON, which knows no NaN and no infinity.

    Raises:
        UsageError: a number is not finite; the message says which.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        where, number = next(_not_finite(value, ""), ("a value", math.nan))
        raise UsageError(
            f"{where} is {number}, which is not JSON compliant; some input or result is broken, "
            "compare with dense or another --dtype"
        ) from None


def _not_finite(value: Any, where: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield where or "the value", value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{where}[{index}]")


def check_file_name(path: Path) -> None:
    """Refuse names that cannot become a file, before any work is done.

    Raises:
        UsageError: it is a folder, lies in one that cannot be made or written to, or is the next
            option, which a command line takes for the file when that is left out.
    """
    if str(path).startswith("--"):
        raise UsageError(f"{path} is an option where a file's name belongs; a file: ./{path}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(f"cannot write {path}: {nearest} is no writable folder; choose another")
