"""Which dtype the bundled models run in, by device."""

import torch


def default_dtype(device: torch.device | str) -> torch.dtype:
    """Return bfloat16 where the device computes in it natively, else float32.

    A CPU must have AVX512-BF16 or AMX: others emulate bfloat16. Measured with ``tiny`` on an EPYC
    with AVX512-BF16, one thread, in seconds of CPU time, float32 against bfloat16: a transformer
    call on the cpu grid 1.73 against 1.47, decoding the clip 2.50 against 0.71.

    Args:
        device: where the model runs; anything but a CPU counts as native.
    """
    if torch.device(device).type != "cpu" or _cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def _cpu_has_bfloat16() -> bool:
    # torch.ops.mkldnn._is_mkldnn_bf16_supported() is no help: it is true for emulation as well.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
