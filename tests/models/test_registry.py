import subprocess
import sys

import pytest

from vidsparse import models


def test_importing_the_registry_imports_nothing_heavy():
    code = "import sys, vidsparse.models; print('torch' in sys.modules, 'cv2' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_tiny_has_a_grid_for_each_purpose():
    grids = models.info("tiny").grids
    assert 2000 <= grids["cpu"].tokens <= 4096
    assert 8000 <= grids["gpu"].tokens <= 16384
    assert grids["gpu-large"].tokens >= 30000
    assert models.info("tiny").grid_of(128, 128, 33) == "cpu"
    assert models.info("tiny").grid_of(128, 130, 33) is None
    assert [one.name for one in models.available()] == ["tiny"]


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="'huge' is not bundled; choose from tiny"):
        models.info("huge")
