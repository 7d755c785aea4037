import subprocess
import sys
from pathlib import Path

# As diffusers' own do: parameters of the call, a run, a reloaded pipeline, a failure.
TESTS = """
import inspect

import torch
from vidsparse.pipelines import testing


def test_parameters():
    assert "num_frames" in inspect.signature(type(testing.wan().pipe).__call__).parameters


def test_reloaded(tmp_path):
    tiny = testing.wan()
    tiny.pipe.save_pretrained(tmp_path)
    loaded = type(tiny)(type(tiny.pipe).from_pretrained(tmp_path), tiny.inputs)
    assert torch.equal(loaded.latents(), loaded.latents())


def test_nothing_is_left():
    tiny = testing.wan()
    before = [block.attn1.processor for block in tiny.pipe.transformer.blocks]
    tiny.latents()
    assert all(b.attn1.processor is p for b, p in zip(tiny.pipe.transformer.blocks, before))


def test_wrong():
    assert testing.wan().latents().abs().max() > 1e6
"""


def test_outcomes_stay_and_calls_go_through_vidsparse(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    plugin = ("-p", "vidsparse.profiling.diffusers_tests", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", "-q", "-rA", *plugin, "test_it.py"]
    log = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    found = [line.split()[0] for line in log.splitlines() if line.startswith(("PASSED", "FAILED"))]
    assert found == [*["PASSED"] * 3, "FAILED"], log
    assert "FAILED test_it.py::test_wrong" in log
    # Two steps of two branches and two layers each.
    assert "vidsparse: 4 pipeline calls with 32 attention calls at density 1" in log
