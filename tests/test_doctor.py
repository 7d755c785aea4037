import json
from pathlib import Path

import pytest
import torch

from vidsparse.kernels.block_sparse_attention import Impl
from vidsparse.profiling import environment
from vidsparse.profiling.doctor import devices, diagnose, kernel_support


def test_diagnosis_is_json() -> None:
    found = diagnose()
    assert json.loads(json.dumps(found, allow_nan=False)) == found or found["kernels"]
    assert found["versions"]["torch"] == environment.package_version("torch")
    assert devices()[0]["device"] == "cpu"


def test_every_implementation_is_judged() -> None:
    rows = kernel_support(torch.device("cpu"))
    assert {row.impl for row in rows} == {impl.value for impl in Impl} - {"auto"}
    assert all(row.runs or row.why_not for row in rows)
    assert next(row for row in rows if row.impl == "torch").runs


def test_bundled_models_and_lpips_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "nowhere")
    parts = diagnose()["parts"]
    assert parts["lpips"].startswith("unavailable: get")
    assert parts["bundled models"].startswith("tiny")


def test_run_meta_names_what_reproduces_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["vidsparse", "compare", "--prompt", "a b"])
    meta = environment.run_meta("cpu")
    assert meta["command"] == "vidsparse compare --prompt 'a b'"
    assert {"device", "torch", "triton", "commit", "date", "driver"} <= set(meta)
    assert environment.run_meta("cpu", "make it")["command"] == "make it"


def test_no_commit_outside_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "environment.py"
    copy.touch()
    monkeypatch.setattr(environment, "__file__", str(copy))
    monkeypatch.delenv("VIDSPARSE_COMMIT", raising=False)
    assert environment.commit() is None
    monkeypatch.setenv("VIDSPARSE_COMMIT", "1234567890ab")
    assert environment.commit() == "1234567890ab"
