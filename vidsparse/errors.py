"""Errors a caller can act on; the command line prints them as one line and exits with 2."""


class VidsparseError(Exception):
    """Base of the errors that say what was given, what is allowed and what to do."""


class UsageError(VidsparseError, ValueError):
    """An argument, option or preset that cannot be used."""


class UnsupportedPipelineError(VidsparseError, TypeError):
    """A pipeline or transformer no model family knows."""


class AlreadyEnabledError(VidsparseError, RuntimeError):
    """Sparse attention is already enabled on this transformer."""
