"""Compile the Gluon attention kernels for an H100 where there is none; print machine code.

``python tests/kernels/compile_hopper.py NAME...`` prints one JSON object, SASS by name.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from compiling import compile_only

from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.hopper import attend_gluon, attend_ragged_gluon
from vidsparse.kernels.moved_heads import MovedHeads

S, H = 256, 2


def _attend(D: int, **options: Any) -> None:
    q, k, v = torch.randn(3, 1, H, S, D).bfloat16()
    mask = BlockMask.full(block_q=128, block_kv=128, seq_q=S, seq_kv=S)
    attend_gluon(q, k, v, mask, scale=0.1, **options)


def _move(D: int) -> None:
    copies = torch.randn(2, 1, H, S, D).bfloat16()
    order = torch.zeros(1, H, S, dtype=torch.int32)
    _attend(D, moved=MovedHeads(torch.ones(1, H, dtype=torch.bool), order, *copies))


def _ragged(D: int, **options: Any) -> None:
    q, k, v = torch.randn(3, 1, H, S, D).bfloat16()
    sizes = torch.full((1, H, 2), S // 2, dtype=torch.int32)
    kept = torch.ones(1, H, 2, 2, dtype=torch.bool)
    mask = RaggedBlockMask.from_sizes(kept, sizes, sizes, seq_q=S, seq_kv=S)
    attend_ragged_gluon(q, k, v, mask, scale=0.1, **options)


KERNELS: dict[str, Callable[[], None]] = {
    "plain": lambda: _attend(128),
    "statistics": lambda: _attend(128, stats_lse=torch.zeros(1, H, S)),
    "means": lambda: _attend(128, compensate=True),
    "moved": lambda: _move(128),
    "ragged": lambda: _ragged(128),
    "ragged means": lambda: _ragged(128, compensate=True),
}


def _disassemble(cubin: bytes) -> str:
    program = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "-c", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(names: list[str]) -> None:
    """Print the machine code of some kernels."""
    compiled: list[Any] = []

    def keep(name: str, kernel: Any) -> None:
        if "attention_kernel" in name:
            compiled.append(kernel)

    compile_only(90, keep)
    code = {}
    for name in names:
        KERNELS[name]()
        code[name] = _disassemble(compiled.pop().asm["cubin"])
    json.dump(code, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
