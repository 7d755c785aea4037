"""Names of kernels and precisions that a user may give."""

from vidsparse.errors import UsageError


def check_impl(name: str) -> str:
    """Return the name of a kernel implementation.

    Raises:
        UsageError: it is unknown.
    """
    from vidsparse.kernels.block_sparse_attention import Impl

    if name not in list(Impl):
        raise UsageError(f"unknown impl {name!r}; choose one of {', '.join(Impl)}")
    return name


def check_precision(name: str) -> str:
    """Return the name of a precision.

    Raises:
        UsageError: it is unknown.
    """
    from vidsparse.precision import Precision

    if name not in list(Precision):
        raise UsageError(f"unknown precision {name!r}; choose one of {', '.join(Precision)}")
    return name
