"""Errors a caller can act on; the command line prints them as one line and exits with 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class VidsparseError(Exception):
    """Base of the errors that say what was given, what is allowed and what to do."""


class UsageError(VidsparseError, ValueError):
    """An argument, option or preset that cannot be used."""


class UnsupportedPipelineError(VidsparseError, TypeError):
    """A pipeline or transformer no model family knows."""


class AlreadyEnabledError(VidsparseError, RuntimeError):
    """Sparse attention is already enabled on this transformer."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" for a mistyped name, or nothing when none is near."""
    near = get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
