"""Compile the kernels of many cases at once: Triton keeps on disk what any process compiled."""

import subprocess
import sys
from collections.abc import Sequence

from vidsparse.kernels.block_sparse_attention import Impl
from vidsparse.profiling.kernel_cases import KernelCase


def compile_in_processes(cases: Sequence[KernelCase], impls: Sequence[Impl], jobs: int) -> None:
    """Run every case once, spread over processes; a failure shows when the case is timed.

    Args:
        cases: shapes; those of one name differ in nothing that is compiled.
        impls: implementations.
        jobs: processes at a time; 0 or 1 does nothing.
    """
    names = list(dict.fromkeys(case.name for case in cases))
    groups = [names[i::jobs] for i in range(jobs)] if jobs > 1 else []
    running = [
        subprocess.Popen(_command(group, impls), stdout=subprocess.DEVNULL)
        for group in groups
        if group
    ]
    for process in running:
        process.wait()


def _command(names: Sequence[str], impls: Sequence[Impl]) -> list[str]:
    words = [sys.executable, "-m", "vidsparse.profiling.bench", "--compile-only"]
    for option, values in (("--case", names), ("--impl", [impl.value for impl in impls])):
        for value in values:
            words += [option, value]
    return words
