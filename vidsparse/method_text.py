"""A method as it is typed: ``name`` or ``name:key=value:key=value``."""

import json
from typing import Any

from vidsparse.errors import UsageError

# What people write who think in Python.
_WORDS = {"True": True, "False": False, "None": None}


def split_method(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the values by key.

    Raises:
        UsageError: a pair has no ``=``, or a key is given twice.
    """
    name, _, tail = text.partition(":")
    found: dict[str, Any] = {}
    for part in filter(None, tail.split(":")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(
                f"method {text!r}: {part!r} has no '='; write name:key=value:key=value"
            )
        key = key.strip()
        if key in found:
            raise UsageError(f"method {text!r}: {key} is given twice; give it once")
        found[key] = read_value(value)
    return name, found


def read_value(text: str) -> Any:
    """Read a number, true, false, null or a list as such, anything else as a string."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
