"""Methods as they are written on a command line."""

import re

from vidsparse.method_text import split_method
from vidsparse.methods.base import SparseMethod, build_method


def split_methods(specs: str) -> list[str]:
    """Cut a list of methods at its commas, but not within the brackets of a value."""
    return re.split(r",(?![^\[]*\])", specs)


def parse_method(spec: str, density: float) -> SparseMethod:
    """Build a method from ``name`` or ``name:field=value:field=value``.

    Raises:
        UsageError: the name, a field or a value is unknown.
    """
    name, given = split_method(spec)
    parameters = {key: tuple(x) if isinstance(x, list) else x for key, x in given.items()}
    return build_method(name, {"density": density, **parameters})
