"""Keep the repository's folder names from hiding other packages of the same name."""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def hand_over(name: str) -> None:
    """Replace top-level module ``name`` by the installed or standard one of that name.

    With the repository root on ``sys.path`` (``python -m``, notebooks), the folders ``kernels``,
    ``pipelines`` and ``profiling`` would hide Hugging Face's ``kernels`` and the standard library's
    ``profiling``. Their ``__init__`` calls this; under ``vidsparse.*`` it does nothing.

    Args:
        name: the importing module's ``__name__``.
    """
    if name.startswith("vidsparse."):
        return
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]
    spec = PathFinder.find_spec(name, elsewhere)
    if spec is None or spec.loader is None:
        # An empty module without a file, as a folder without code would give: transformers asks
        # for the version of "kernels" and takes this for "not installed", but no exception.
        sys.modules[name] = module_from_spec(ModuleSpec(name, None))
        return
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
