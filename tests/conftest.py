"""Set up the test session: Triton's interpreter without a GPU, GPU tests skipped there."""

import os

import pytest
import torch

# Workers share the cores: threads of their own would only get in one another's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# Triton reads this when it is imported, which is later than this file.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
