"""What the compiler makes of the Gluon kernels, without a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_hopper.py")
_BARRIER = re.compile(r"SYNCS\.EXCH\.64 URZ, \[UR\d+\+0x([0-9a-f]+)\]")
_STORE = re.compile(r"\bSTS(?:\.(\d+))? \[UR\d+\+0x([0-9a-f]+)\]")


def overlaps(code: str) -> set[int]:
    """Return the barriers of 8 bytes that stores at fixed places of shared memory hit."""
    barriers = {int(place, 16) for place in _BARRIER.findall(code)}
    stores = [(int(place, 16), int(bits or 32) // 8) for bits, place in _STORE.findall(code)]
    assert barriers
    assert stores
    return {b for b in barriers for place, size in stores if place < b + 8 and b < place + size}


def test_an_overlap_is_found() -> None:
    code = "@!UP1 SYNCS.EXCH.64 URZ, [UR8+0x100], UR4 ; STS.64 [UR8+0xfc], R2 ; STS [UR8+0x10c], R4"
    assert overlaps(code) == {0x100}
    assert not overlaps(code.replace("0xfc", "0xf8"))


def loops_of_products(code: str) -> list[str]:
    """Return the bodies of the loops over tiles: two products of 8 instructions each.

    Spin loops behind all else also jump back, over more code.
    """
    lines = code.splitlines()
    begins = {line.split(":")[0]: n for n, line in enumerate(lines) if line.startswith(".L_x_")}
    bodies = []
    for end, line in enumerate(lines):
        target = re.search(r"BRA `\((\.L_x_\d+)\)", line)
        if target and begins.get(target[1], end) < end:
            body = "\n".join(lines[begins[target[1]] : end])
            if body.count("HGMMA") == 16 and end - begins[target[1]] < 500:
                bodies.append(body)
    return bodies


@pytest.fixture(scope="module")
def compiled() -> dict[str, str]:
    """Machine code by name."""
    if sys.platform != "linux":
        pytest.skip("needs triton's compiler")
    pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
    names = ["plain", "statistics", "means", "moved", "ragged", "ragged means"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    code: dict[str, str] = json.loads(done.stdout)
    return code


def test_no_argument_of_a_partition_lies_where_a_barrier_was_initialised(
    compiled: dict[str, str],
) -> None:
    """Nothing orders such a store after the initialisation: a pointer would be a barrier's state.

    The compiler takes the memory of barriers that nobody waits for.
    """
    for name, code in compiled.items():
        assert not overlaps(code), name


def test_addresses_of_tiles_stay_in_uniform_registers(compiled: dict[str, str]) -> None:
    """Products wait for an address that has to be copied there first: 1 to 2 % of a kernel's time.

    Past 32 basic blocks LLVM gives all partitions one copy of the shared memory's address.
    """
    for name in ("plain", "statistics", "means", "moved"):
        loops = loops_of_products(compiled[name])
        assert len(loops) == (4 if name == "means" else 2), name
        assert not any("R2UR" in loop for loop in loops), name
