"""Names of kernels and precisions that a user may give."""

from collections.abc import Iterable

from vidsparse.errors import UsageError


def check_impl(name: str) -> str:
    """Return the name of a kernel implementation.

    Raises:
        UsageError: it is unknown.
    """
    from vidsparse.kernels.block_sparse_attention import Impl

    return _one_of("impl", name, Impl)


def check_precision(name: str) -> str:
    """Return the name of a precision.

    Raises:
        UsageError: it is unknown.
    """
    from vidsparse.precision import Precision

    return _one_of("precision", name, Precision)


def _one_of(kind: str, name: str, known: Iterable[str]) -> str:
    if name not in list(known):
        raise UsageError(f"unknown {kind} {name!r}; choose one of {', '.join(known)}")
    return name
