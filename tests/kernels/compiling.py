"""Compile kernels for a GPU where there is none: launches end after the compiler."""

from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# Shared memory that one program may take, in bytes, by compute capability.
SHARED_MEMORY = {80: 166912, 89: 101376, 90: 232448}


class _Target:
    """What the compiler asks a driver for."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def utils(self) -> "_Target":
        return self

    def get_device_properties(self, device: int) -> dict[str, int]:
        shared = SHARED_MEMORY[self._capability]
        return {"max_shared_mem": shared, "multiprocessor_count": 132, "warpSize": 32}


def compile_only(capability: int, compiled: Callable[[str, Any], None]) -> None:
    """Make launches compile, for the rest of the process.

    Args:
        capability: compute capability times ten, one of ``SHARED_MEMORY``.
        compiled: called with the name of each launched kernel and what the compiler made of it.
    """
    driver.set_active(_Target(capability))
    run = JITFunction.run

    def compile_instead(self: Any, *args: Any, **options: Any) -> Any:
        kernel = run(self, *args, **{**options, "warmup": True})
        compiled(self.fn.__name__, kernel)
        return kernel

    JITFunction.run = compile_instead
