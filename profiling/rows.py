"""Results files that lose nothing when a run is cut off."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from vidsparse.files import write_text

Row = dict[str, Any]

# What tells the points of a sweep or bench apart.
_KEY = (
    "case", "model", "dtype", "shape", "size", "layers", "method", "impl", "compiled", "heads",
    "phase", "grid", "requested_density", "step", "num_steps", "dense_steps", "clips", "statistic",
)  # fmt: skip

# What rows of several runs in one file need to be told apart.
_OF_A_ROW = ("device", "commit")


class RowFile:
    """Print rows, and write them all to a JSON file each time one comes.

    Args:
        path: the file; None only prints.
        meta: how the rows were measured; each row carries its device and commit.
        append: keep the rows the file has; a row of the same point, by ``_KEY``, is replaced. Rows
            written before a field was added to them differ from all that have it.
    """

    def __init__(self, path: Path | None, meta: dict[str, Any], *, append: bool = False) -> None:
        self._path, self._meta = path, meta
        self._rows: list[Row] = []
        if append and path is not None and path.is_file():
            self._rows = json.loads(path.read_text())["rows"]

    def __call__(self, row: Row) -> None:
        """Take a row."""
        row = {**row, **{name: self._meta[name] for name in _OF_A_ROW if name in self._meta}}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
        self._rows = [old for old in self._rows if _point_key(old) != _point_key(row)] + [row]
        if self._path is not None:
            write_text(self._path, json.dumps({"meta": self._meta, "rows": self._rows}, indent=1))


def _point_key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEY)


def module_command(module: str) -> str:
    """Return the command line of this process, started as ``python -m module``."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def print_error(line: str) -> None:
    """Print a line to the error stream."""
    sys.stderr.write(line + "\n")
