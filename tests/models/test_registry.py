import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vidsparse import models
from vidsparse.loading import has_weights


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


@pytest.mark.skipif(not has_weights("tiny"), reason="this checkout holds no weights")
def test_everything_says_the_same_number_of_parameters() -> None:
    count = 0
    for file in models.path("tiny").glob("*/*.safetensors"):
        count += sum(tensor.numel() for tensor in load_file(file).values())
    said = f"{count / 1e6:.1f} M"
    readme = Path(__file__).parents[2] / "README.md"
    card = models.path("tiny") / "README.md"
    assert f"{said} parameter" in models.info("tiny").description
    assert all(f"{said} parameters" in file.read_text() for file in (readme, card))
