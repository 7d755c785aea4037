"""Parameter values as command lines and files give them, checked against a method's fields."""

from collections.abc import Mapping
from inspect import formatannotation
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vidsparse.errors import UsageError


def check_kinds(name: str, method: type, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with lists as tuples, as frozen methods want them.

    Names are taken to be fields already. A choice of words is left to the method.

    Args:
        name: the method's name, for the message.
        method: its dataclass.
        parameters: values by field.

    Raises:
        UsageError: a value is of another kind than its field.
    """
    hints = get_type_hints(method)
    found = {key: _tuples(value) for key, value in parameters.items()}
    for key, value in found.items():
        if not _fits(value, hints[key]):
            kind = formatannotation(hints[key])
            how = "; on a command line, write [1,2] for a tuple" if "tuple" in kind else ""
            raise UsageError(f"method {name!r}: {key}={value!r} must be {kind}{how}")
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(part, parts[0]) for part in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if hint in (int, float):
        number = Integral if hint is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    return hint not in (bool, str, NoneType) or isinstance(value, hint)
