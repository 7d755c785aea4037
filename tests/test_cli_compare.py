from typing import Any

import pytest

from vidsparse import cli_compare
from vidsparse.pipelines.testing import wan

META = {
    "model": "/m", "dtype": "float32", "sampling": {}, "device": "a CPU", "torch": "2",
    "commit": None, "versions": {"vidsparse": "0.1", "diffusers": "0.40", "lpips": "0.1"},
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = wan(heads=2, head_dim=32).pipe
    made.set_progress_bar_config(disable=True)
    return made


def test_clips_of_another_version_or_model_are_not_taken(pipe: Any) -> None:
    def settings(pipe: Any = pipe, **versions: str) -> dict[str, Any]:
        meta = {**META, "versions": {**META["versions"], **versions}}
        return cli_compare._settings(meta, pipe)

    assert settings() == settings(lpips="0.2")
    assert settings() != settings(vidsparse="0.2")
    assert settings() != settings(diffusers="0.41")
    assert settings() != settings(wan(heads=4, head_dim=16).pipe)
