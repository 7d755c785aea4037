import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = ("kernels", "pipelines", "profiling")


def folders() -> set[str]:
    """Import names of all folders with Python files that are part of the package."""
    found = set()
    for top in ("vidsparse", *MAPPED):
        for file in (ROOT / top).rglob("*.py"):
            parts = file.parent.relative_to(ROOT).parts
            found.add(".".join(parts if top == "vidsparse" else ("vidsparse", *parts)))
    return found


def test_listed_packages_are_the_folders() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == folders()
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", MAPPED)
def test_root_folders_never_hide_packages_of_the_same_name(name: str) -> None:
    # Where no other package has the name, an empty module stands in for none.
    script = (
        f"import {name} as m\n"
        "file = getattr(m, '__file__', None)\n"
        "assert file is None or 'vidsparse' not in open(file).read(), file\n"
        f"import vidsparse.{name} as ours\nassert ours.__file__"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_package_data_patterns_match_files() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    assert (ROOT / "vidsparse" / "py.typed").is_file()
    assert "templates/*.j2" in data["vidsparse"]
    assert list((ROOT / "vidsparse" / "templates").glob("*.j2"))
    # What the list of models reads of the results.
    assert data["vidsparse.profiling"] == ["results/families-*.json"]
    held = {p for pattern in data["vidsparse.models"] for p in MODELS.glob(pattern)}
    files = {path for path in (MODELS / "tiny").rglob("*") if path.is_file()}
    assert files <= held


MODELS = ROOT / "vidsparse" / "models"


def test_installed_metadata_names_script_licence_and_python() -> None:
    about = metadata.metadata("vidsparse")
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.11"
    (script,) = [e for e in metadata.entry_points(group="console_scripts") if e.name == "vidsparse"]
    assert script.value == "vidsparse.cli:main"


def test_version_is_one_everywhere() -> None:
    import vidsparse

    assert metadata.version("vidsparse") == vidsparse.__version__ == PROJECT["project"]["version"]
    assert f"## {vidsparse.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_import_is_a_dependency_or_ours() -> None:
    modules = {"scikit-learn": "sklearn", "opencv-python-headless": "cv2"}
    declared = {re.split(r"[\[<>=; ]", text)[0] for text in PROJECT["project"]["dependencies"]}
    allowed = {modules.get(name, name.replace("-", "_")) for name in declared}
    # What declared packages cannot work without and bring along.
    allowed |= {"numpy", "PIL", "huggingface_hub", "tokenizers"}
    allowed |= {"vidsparse", *sys.stdlib_module_names}
    for top in ("vidsparse", *MAPPED):
        for file in (ROOT / top).rglob("*.py"):
            assert imported(file) <= allowed, file


def imported(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_ci_runs_the_readmes_test_command() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in ci
    assert "<!-- test -->" in ci
    block = re.search(r"<!-- test -->\n```bash\n(.*?)\n```", (ROOT / "README.md").read_text(), re.S)
    assert block is not None
    assert "pytest" in block[1]
    assert ".[test]" in block[1]
