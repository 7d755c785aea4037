"""Run diffusers' own pipeline tests with every supported pipeline at density 1: a pytest plugin.

In a checkout of the diffusers version that is installed, with its test requirements (the tests load
tiny models from the Hub)::

    git clone --depth 1 --branch v0.42.1 https://github.com/huggingface/diffusers && cd diffusers
    python -m pytest -q -rA tests/pipelines/wan | grep -E '^[A-Z]+ ' | sort > plain.txt
    python -m pytest -q -rA -p vidsparse.profiling.diffusers_tests tests/pipelines/wan \
        | tee wrapped.log | grep -E '^[A-Z]+ ' | sort > wrapped.txt
    diff plain.txt wrapped.txt && grep '^vidsparse:' wrapped.log

Outcomes must be the same, and the last lines tell how many calls really went through vidsparse. The
directories are those of the pipelines that ``vidsparse models`` lists.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import diffusers

from vidsparse.api import enable
from vidsparse.errors import UnsupportedPipelineError
from vidsparse.pipelines.base import supported_pipelines

_COUNTS: Counter[str] = Counter()
_REFUSED: Counter[str] = Counter()


def pytest_configure(config: object) -> None:
    """Let every supported pipeline generate with vidsparse at density 1."""
    for name in supported_pipelines():
        cls = getattr(diffusers, name)
        if "__call__" in vars(cls):
            cls.__call__ = _at_density_1(cls.__call__)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell how much went through vidsparse, and what was refused."""
    calls, layers = _COUNTS["pipeline calls"], _COUNTS["attention calls"]
    terminalreporter.write_line(
        f"vidsparse: {calls} pipeline calls with {layers} attention calls at density 1"
    )
    for reason, count in _REFUSED.items():
        terminalreporter.write_line(f"vidsparse: refused {count} times: {reason}")


def _at_density_1(call: Callable[..., Any]) -> Callable[..., Any]:
    # Tests read the parameters of a call.
    @functools.wraps(call)
    def wrapped(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            handle = enable(pipe, density=1.0)
        except UnsupportedPipelineError as error:
            _REFUSED[str(error)] += 1
            return call(pipe, *args, **kwargs)
        with handle:
            result = call(pipe, *args, **kwargs)
        _COUNTS["pipeline calls"] += 1
        _COUNTS["attention calls"] += handle.summary().calls
        return result

    return wrapped
