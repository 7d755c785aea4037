"""Set up the test session: Triton's interpreter without a GPU, GPU tests skipped there."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# Tiny tensors: threads cost more than they bring, above all beside other workers.
torch.set_num_threads(1)

# Triton reads this when it is imported, which is later than this file.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def cut_off_writes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what lets text files be written by half from now on, then an interrupt come."""

    def half(path: Path, text: str, **options: object) -> None:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    return lambda: monkeypatch.setattr(Path, "write_text", half)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
