"""Time launch configurations of one kernel case: what the tables in ``kernels`` are filled from.

``python -m vidsparse.profiling.tune_kernels wan14b-720p-128 --density 0.25``
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vidsparse.kernels.attention_output import AttentionOutput
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.hopper import GluonConfig, attend_gluon, attend_ragged_gluon
from vidsparse.kernels.hopper_8bit import Gluon8BitConfig, attend_quantized_gluon
from vidsparse.kernels.launch import LaunchConfig
from vidsparse.kernels.quantize import quantize_qkv
from vidsparse.kernels.triton_attention import attend_triton
from vidsparse.kernels.triton_attention_8bit import attend_quantized_triton
from vidsparse.profiling.bench import Inputs, Mask, dense_functions, make_inputs, relative_error
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.kernel_cases import GPU_CASES, KernelCase
from vidsparse.profiling.timing import time_interleaved

GLUON: dict[int, tuple[GluonConfig, ...]] = {
    128: (
        GluonConfig(2, 128, 2, False, 240, 168),
        GluonConfig(2, 128, 2, False, 240, 168, fixed=True),
        GluonConfig(2, 128, 2, True, 240, 168),
        GluonConfig(2, 128, 3, False, 240, 168),
        GluonConfig(2, 128, 3, False, 240, 168, 8),
        GluonConfig(1, 64, 2, False, 232, 128),
        GluonConfig(1, 64, 3, False, 232, 128),
    ),
    64: (
        GluonConfig(3, 128, 4, False, 160, 128),
        GluonConfig(3, 128, 4, False, 160, 128, 8),
        GluonConfig(3, 128, 4, False, 160, 128, fixed=True),
        GluonConfig(3, 128, 4, False, 160, 128, 8, fixed=True),
        GluonConfig(3, 128, 4, False, 160, 128, 4),
        GluonConfig(3, 128, 4, True, 160, 128, 8),
        GluonConfig(2, 128, 4, False, 240, 168),
        GluonConfig(2, 128, 4, False, 240, 168, 8),
        GluonConfig(2, 128, 4, False, 240, 168, 8, fixed=True),
        GluonConfig(2, 128, 4, True, 240, 168, 8),
        GluonConfig(1, 128, 2, False, 232, 128),
        GluonConfig(1, 128, 2, False, 232, 128, 8),
        GluonConfig(1, 128, 2, False, 232, 128, 8, fixed=True),
        GluonConfig(1, 128, 3, False, 232, 128, 8, fixed=True),
    ),
}
# Variable blocks: keys per chunk and CTA shape.
RAGGED: tuple[tuple[int, GluonConfig], ...] = (
    (16, GluonConfig(2, 128, 3, False, 240, 168, fixed=True)),
    (16, GluonConfig(2, 128, 2, False, 240, 168, fixed=True)),
    (32, GluonConfig(2, 128, 3, False, 240, 168, fixed=True)),
)
TRITON: tuple[LaunchConfig, ...] = tuple(
    LaunchConfig(*shape)
    for shape in (
        (128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 2), (128, 64, 4, 3),
        (64, 128, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 4, 4),
    )
)  # fmt: skip


GLUON_8BIT: tuple[Gluon8BitConfig, ...] = (
    Gluon8BitConfig(2, 2, 240, 168),
    Gluon8BitConfig(2, 3, 240, 168),
    Gluon8BitConfig(2, 4, 240, 168),
)
TRITON_8BIT: tuple[LaunchConfig, ...] = tuple(
    LaunchConfig(*shape) for shape in ((128, 128, 8, 3), (128, 128, 8, 2), (64, 128, 4, 2))
)


def variants_8bit(
    inputs: Inputs, mask: BlockMask
) -> Iterator[tuple[str, Callable[[], AttentionOutput]]]:
    """Yield (name, function) of every configuration of the 8-bit kernels, on rounded inputs."""
    x = quantize_qkv(inputs.q, inputs.k, inputs.v, block_kv=mask.block_kv)
    out = torch.empty_like(inputs.q)
    for c in GLUON_8BIT:
        yield f"gluon 8bit st{c.stages}", partial(attend_quantized_gluon, x, mask, out, c)
    for t in TRITON_8BIT:
        name = f"triton 8bit {t.block_q}x{t.block_kv} w{t.num_warps} st{t.num_stages}"
        yield name, partial(attend_quantized_triton, x, mask, out, t)


def variants(
    case: KernelCase, inputs: Inputs, mask: Mask
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (name, function) of every configuration that fits a case's blocks."""
    q, k, v, scale = inputs.q, inputs.k, inputs.v, case.D**-0.5
    if case.bits == 8 and isinstance(mask, BlockMask):
        yield from variants_8bit(inputs, mask)
        return
    if isinstance(mask, RaggedBlockMask):
        for chunk, c in RAGGED:
            name = f"gluon ragged chunk {chunk} st{c.stages}"
            yield name, partial(attend_ragged_gluon, q, k, v, mask, scale=scale, config=(chunk, c))
        return
    for c in GLUON[case.D]:
        if case.block_q % (64 * c.groups) == 0 and c.tile_kv % case.block_kv == 0:
            name = f"gluon {c.groups}x64 kv{c.tile_kv} st{c.stages} pp{int(c.pingpong)}"
            name += f" cubic{c.cubic_share}" if c.cubic_share else ""
            name += " fixed" if c.fixed else ""
            run = partial(attend_gluon, q, k, v, mask, scale=scale, config=c)
            yield name, run
            if c.tile_kv == case.block_kv and not c.cubic_share and not c.fixed:
                yield f"{name} stats", partial(run, stats_lse=inputs.q[..., 0].float() + 11)
    for t in TRITON:
        if case.block_q % t.block_q == 0:
            name = f"triton {t.block_q}x{t.block_kv} w{t.num_warps} st{t.num_stages}"
            yield name, partial(attend_triton, q, k, v, mask, scale=scale, config=t)


def tune(case: KernelCase, device: torch.device, *, repeats: int) -> list[dict[str, Any]]:
    """Check and time every configuration; failures are rows with their message."""
    inputs = make_inputs(case, device, torch.bfloat16)
    mask = inputs.planner()
    functions: dict[str, Callable[[], Any]] = {}
    rows: list[dict[str, Any]] = []
    for name, function in variants(case, inputs, mask):
        row: dict[str, Any] = {"case": case.name, "config": name}
        rows.append(row)
        try:
            row["rel_error"] = relative_error(inputs, mask, function().out)
        # A configuration that does not compile or fit is a result, whatever it raises.
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:300]
            continue
        if row["rel_error"] < (0.01 if case.bits == 16 else 0.05):
            functions[name] = function
    if repeats == 0:
        return rows
    dense = dense_functions(inputs.q, inputs.k, inputs.v)
    times = time_interleaved({**dense, **functions}, device, repeats=repeats)
    density = float(mask.density())
    dense_ms = min(times[name].median_ms for name in dense)
    for row in rows:
        if row["config"] in times:
            ms = times[row["config"]].median_ms
            flops = 4 * case.H * case.S**2 * case.D * density
            row |= {"density": density, "kernel_ms": ms, "dense_ms": dense_ms,
                    "eff_tflops": flops / ms / 1e9,
                    "fraction_of_ideal": dense_ms * density / ms}  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Time launch configurations of one case.")
    parser.add_argument("case", choices=sorted({c.name for c in GPU_CASES}))
    parser.add_argument("--density", type=float, action="append")
    parser.add_argument("--repeats", type=int, default=10, help="0 only compiles and checks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device("cuda")
    rows: list[dict[str, Any]] = []
    for case in GPU_CASES:
        if case.name != options.case or case.density not in (options.density or [case.density]):
            continue
        for row in tune(case, device, repeats=options.repeats):
            rows.append(row)
            sys.stdout.write(_line(row) + "\n")
            sys.stdout.flush()
    if options.json:
        document = {"meta": run_meta(device), "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _line(row: dict[str, Any]) -> str:
    start = f"{row['case']:22s} {row['config']:26s}"
    if "kernel_ms" not in row:
        return f"{start} {row.get('failed', 'wrong')} error {row.get('rel_error')}"
    return (
        f"{start} d={row['density']:.3f} {row['kernel_ms']:8.3f} ms dense {row['dense_ms']:8.3f} "
        f"{row['eff_tflops']:6.1f} TF ideal {row['fraction_of_ideal']:.3f} "
        f"err {row['rel_error']:.4f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
