"""Read and write presets as TOML, or JSON where the name says so."""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidsparse.errors import UsageError
from vidsparse.files import check_file_name, write_text

SUFFIXES = (".toml", ".json")


def check_preset_name(path: Path) -> None:
    """Refuse names that no preset can be written to, before any work is done.

    Raises:
        UsageError: it has another ending, or cannot become a file.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} must end in {' or '.join(SUFFIXES)}")
    check_file_name(path)


def read_values(path: Path) -> dict[str, Any]:
    """Return the table of a preset file.

    Raises:
        UsageError: it cannot be read or holds no table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read preset {path}: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"preset {path} must hold one JSON object, not {type(values).__name__}")
    return values


def write_values(path: Path, values: Mapping[str, Any]) -> None:
    """Write a table as a preset file, whole or not at all.

    Args:
        path: ends in .toml or .json; its folder is made when missing.
        values: nested tables; TOML holds no None.

    Raises:
        UsageError: the name has another ending, the file cannot be written, or a value cannot be
            held by the format.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"cannot write preset {path}: its name must end in .toml or .json")
    try:
        made = json.dumps(values, indent=2) + "\n" if path.suffix == ".json" else to_toml(values)
    except TypeError as error:
        raise UsageError(f"cannot write preset {path}: {error}") from None
    write_text(path, made)


def to_toml(values: Mapping[str, Any]) -> str:
    """Return a table as TOML text, scalars before sections.

    Raises:
        TypeError: a value is None or of a type TOML does not have.
    """
    return "\n".join(_table((), values)).lstrip("\n") + "\n"


def _table(path: tuple[str, ...], values: Mapping[str, Any]) -> list[str]:
    plain = {key: value for key, value in values.items() if not _is_section(value)}
    lines = [f"{_key(key)} = {_value(value, key)}" for key, value in plain.items()]
    for key, value in values.items():
        if key in plain:
            continue
        inner = (*path, key)
        header = ".".join(map(_key, inner))
        if isinstance(value, Mapping):
            # A table that only holds tables needs no header of its own.
            own = [] if value and all(map(_is_section, value.values())) else ["", f"[{header}]"]
            lines += [*own, *_table(inner, value)]
        else:
            for row in value:
                lines += ["", f"[[{header}]]", *_table(inner, row)]
    return lines


def _is_section(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list) and bool(value) and all(isinstance(x, Mapping) for x in value)


def _key(key: str) -> str:
    bare = key.replace("_", "a").replace("-", "a")
    return key if bare.isascii() and bare.isalnum() else _string(key)


def _value(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(_value(item, key) for item in value)}]"
    raise TypeError(f"{key}={value!r} has no TOML form; write a .json file or leave it out")


def _string(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML also wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
