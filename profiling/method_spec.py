"""Methods as they are written on a command line."""

import json
import re
from typing import Any

from vidsparse.errors import UsageError
from vidsparse.methods.base import SparseMethod, build_method


def split_methods(specs: str) -> list[str]:
    """Cut a list of methods at its commas, but not within the brackets of a value."""
    return re.split(r",(?![^\[]*\])", specs)


def parse_method(spec: str, density: float) -> SparseMethod:
    """Build a method from ``name`` or ``name:field=value:field=value``.

    Raises:
        UsageError: the name, a field or a value is unknown.
    """
    name, *options = spec.split(":")
    parameters: dict[str, Any] = {"density": density}
    for option in options:
        field, equals, value = option.partition("=")
        if not equals:
            raise UsageError(f"option {option!r} of {spec!r} has no value; write field=value")
        try:
            parsed = json.loads(value)
            parameters[field] = tuple(parsed) if isinstance(parsed, list) else parsed
        except json.JSONDecodeError:
            parameters[field] = {"True": True, "False": False}.get(value, value)
    return build_method(name, parameters)
