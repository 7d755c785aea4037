"""The import graph of the design, read from the import statements."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "vidsparse.kernels": ROOT / "kernels",
    "vidsparse.pipelines": ROOT / "pipelines",
    "vidsparse.profiling": ROOT / "profiling",
    "vidsparse.methods": ROOT / "vidsparse" / "methods",
}
HEAVY = ("diffusers", "transformers", "accelerate")
# Package -> prefixes it never imports. Each line is a rule of the design.
FORBIDDEN = {
    "vidsparse.kernels": (
        *HEAVY,
        "vidsparse.attention",
        "vidsparse.layout",
        "vidsparse.methods",
        "vidsparse.pipelines",
        "vidsparse.plan",
        "vidsparse.profiling",
        "vidsparse.schedule",
    ),
    "vidsparse.methods": (*HEAVY, "vidsparse.attention", "vidsparse.pipelines", "vidsparse.api"),
    "vidsparse.pipelines": (
        "triton",
        "vidsparse.api",
        "vidsparse.attention",
        "vidsparse.kernels",
        "vidsparse.methods",
    ),
}
CORE = ("attention", "layout", "plan", "schedule")


def imported(file: Path) -> set[str]:
    """Return the modules a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def breaks(file: Path, forbidden: tuple[str, ...]) -> list[str]:
    return [
        name
        for name in sorted(imported(file))
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in forbidden)
    ]


def files_of(package: str) -> list[Path]:
    files = sorted(FOLDERS[package].rglob("*.py"))
    assert files, f"{package} has no files"
    return files


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_only_what_the_design_allows(package: str) -> None:
    found = {file.name: breaks(file, FORBIDDEN[package]) for file in files_of(package)}
    assert not {name: names for name, names in found.items() if names}


@pytest.mark.parametrize("module", CORE)
def test_core_knows_no_pipelines(module: str) -> None:
    forbidden = (*HEAVY, "vidsparse.pipelines", "vidsparse.api", "vidsparse.cli")
    assert not breaks(ROOT / "vidsparse" / f"{module}.py", forbidden)


def test_kernels_import_torch_and_triton_only() -> None:
    allowed = {"torch", "triton", "vidsparse", *sys.stdlib_module_names}
    for file in files_of("vidsparse.kernels"):
        outside = {name.split(".")[0] for name in imported(file)} - allowed
        assert not outside, f"kernels/{file.name} imports {sorted(outside)}"


def test_a_forbidden_import_is_found(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from vidsparse import kernels\n")
    assert breaks(file, FORBIDDEN["vidsparse.pipelines"]) == ["vidsparse.kernels"]


def test_importing_vidsparse_imports_nothing_heavy() -> None:
    code = "import sys, vidsparse; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_folders_at_the_root_do_not_break_transformers() -> None:
    # From the root, `import kernels` finds our folder; transformers asks for its version.
    code = (
        "import kernels; from transformers.utils import import_utils;"
        "print(import_utils.is_kernels_available() == ('kernels' in import_utils."
        "_package_distribution_mapping()), getattr(kernels, '__file__', None))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    installed, file = done.stdout.split()
    assert installed == "True"
    assert not file.startswith(str(ROOT))
