"""Whether the compiler takes the plain Triton kernels: the interpreter minds no types, no room."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_triton.py")


@pytest.mark.skipif(sys.platform != "linux", reason="needs triton's compiler")
@pytest.mark.parametrize("capability", [80, 89, 90])
def test_every_kernel_compiles_and_fits(capability: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    refused = {case: taken for case, taken in found["taken"].items() if isinstance(taken, str)}
    assert not refused
    assert all(found["taken"].values())
    kernels = {
        (case, k): size for case, taken in found["taken"].items() for k, size in taken.items()
    }
    assert not {kernel: size for kernel, size in kernels.items() if size > found["room"]}
