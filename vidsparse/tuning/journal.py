"""Results on disk as they come, so that a killed search goes on where it stopped."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidsparse.clips import Scene
from vidsparse.errors import UsageError
from vidsparse.files import check_file_name, json_text

_FILE = "journal.jsonl"


def clip_key(scene: Scene) -> str:
    """Name a scene in keys: another number of clips gives its place in a list to others."""
    return f"{scene.seed} {scene.prompt}"


class Journal:
    """One line of JSON per result, written through before the next begins.

    A line cut off by a kill, even of its end only, is dropped when the file is read.

    Args:
        folder: where the journal and larger files lie; made if missing. None keeps all in memory.
        header: JSON values that decide what the results mean; those of an old journal must be the
            same.

    Attributes:
        made: results of this process.

    Raises:
        UsageError: the folder holds the journal of another search, or cannot be written.
    """

    def __init__(self, folder: Path | None, header: dict[str, Any]) -> None:
        self.folder = folder
        self.made = 0
        self._found: dict[str, Any] = {}
        if folder is None:
            return
        check_file_name(folder / _FILE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = self._lines()
        except OSError as error:
            raise UsageError(f"cannot use {folder} for the journal: {error}") from None
        header = json.loads(json.dumps(header))
        if lines:
            self._check(lines[0], header)
        else:
            self._write({"header": header}, mode="w")
        self._found = {line["key"]: line["value"] for line in lines[1:]}

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """Return the result kept under a key, or make it and keep it.

        Args:
            key: names the result.
            make: returns JSON values.
        """
        if key in self._found:
            return self._found[key]
        # What is read back after a kill must be what this run goes on with.
        value = json.loads(json_text(make()))
        self.made += 1
        self._found[key] = value
        if self.folder is not None:
            self._write({"key": key, "value": value}, mode="a")
        return value

    def has(self, key: str) -> bool:
        """Say whether a result is kept."""
        return key in self._found

    def _lines(self) -> list[dict[str, Any]]:
        file = self._file()
        if not file.is_file():
            return []
        *whole, torn = file.read_bytes().split(b"\n")
        lines = []
        for index, line in enumerate(whole):
            try:
                lines.append(json.loads(line))
            # JSON's own errors and those of bytes that are no text.
            except ValueError:
                raise UsageError(
                    f"{file} is damaged in line {index + 1}; delete the folder to start over"
                ) from None
        if torn:
            os.truncate(file, file.stat().st_size - len(torn))
        return lines

    def _check(self, line: dict[str, Any], header: dict[str, Any]) -> None:
        old = line.get("header", {})
        changed = sorted(key for key in {*old, *header} if old.get(key) != header.get(key))
        if changed:
            raise UsageError(
                f"{self.folder} holds a search with another {', '.join(changed)}; choose another "
                "--out, or delete it"
            )

    def _write(self, value: dict[str, Any], *, mode: str) -> None:
        with self._file().open(mode, encoding="utf-8") as file:
            file.write(json_text(value) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _file(self) -> Path:
        if self.folder is None:
            raise ValueError("a journal in memory has no file")
        return self.folder / _FILE
