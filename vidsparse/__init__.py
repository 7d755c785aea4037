"""Training-free sparse attention for diffusers video pipelines.

>>> import vidsparse
>>> handle = vidsparse.enable(pipe, method="svg", density=0.3)  # doctest: +SKIP
>>> pipe("a cat surfs at sunset")  # doctest: +SKIP
>>> print(handle.summary())  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidsparse.api import Handle, disable, enable, enabled
    from vidsparse.config import SparseConfig
    from vidsparse.schedule import DenseSchedule

__version__ = "0.1.0"

# Nothing heavy is imported until a name is asked for: `import vidsparse` must not wait for torch.
_WHERE = {
    "disable": "vidsparse.api",
    "enable": "vidsparse.api",
    "enabled": "vidsparse.api",
    "Handle": "vidsparse.api",
    "SparseConfig": "vidsparse.config",
    "DenseSchedule": "vidsparse.schedule",
}

__all__ = [
    "DenseSchedule",
    "Handle",
    "SparseConfig",
    "__version__",
    "disable",
    "enable",
    "enabled",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vidsparse' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
