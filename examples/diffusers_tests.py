"""Run diffusers' own pipeline tests with every pipeline wrapped at density 1; a pytest plugin.

At density 1 nothing may change, so the outcomes must be those of the unwrapped run. The tests are
in diffusers' repository, not in its packages; check out the version that is installed:

    git clone --depth 1 --branch v0.42.1 https://github.com/huggingface/diffusers
    cd diffusers
    export PYTHONPATH=/path/to/vidsparse/examples
    pytest tests/pipelines/wan tests/pipelines/hunyuan_video                     # as they are
    pytest -p diffusers_tests tests/pipelines/wan tests/pipelines/hunyuan_video  # wrapped

The last line of the wrapped run says how many pipelines were wrapped and how many attention calls
went through vidsparse.
"""

from typing import Any

import pytest
from diffusers import DiffusionPipeline

import vidsparse
from vidsparse.errors import UnsupportedPipelineError

_handles: list[vidsparse.Handle] = []


_original = DiffusionPipeline.register_modules


def _register_and_wrap(self: Any, **components: Any) -> None:
    _original(self, **components)
    if components.get("transformer") is None and components.get("transformer_2") is None:
        return
    try:
        # A test may give one transformer to several pipelines.
        vidsparse.disable(self)
        _handles.append(vidsparse.enable(self, density=1.0))
    except UnsupportedPipelineError:
        return  # images and sound are no business of ours


def pytest_configure(config: pytest.Config) -> None:
    """Wrap each pipeline as soon as it has its components, loaded ones too."""
    DiffusionPipeline.register_modules = _register_and_wrap


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was wrapped: outcomes that agree prove nothing where nothing was."""
    calls = sum(handle.summary().calls for handle in _handles)
    terminalreporter.write_line(f"vidsparse wrapped {len(_handles)} pipelines, {calls} calls")
