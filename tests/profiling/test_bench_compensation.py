import dataclasses
import json

import pytest
import torch

from vidsparse.attention import run_plan
from vidsparse.kernels.testing import random_block_mask, random_ragged_mask
from vidsparse.plan import AttentionPlan
from vidsparse.profiling.bench_compensation import bench_compensation, main
from vidsparse.profiling.gate import check_sampled_rows
from vidsparse.profiling.kernel_cases import KernelCase

SMALL = KernelCase("small", H=2, S=600, D=32, block_q=64, block_kv=64, density=0.25)


@pytest.mark.parametrize("case", [SMALL, dataclasses.replace(SMALL, clusters=(5, 9))])
def test_both_kinds_are_checked_and_timed(case):
    (row,) = bench_compensation(case, torch.device("cpu"), repeats=1)
    assert row["impl"] == "torch"
    assert row["heads"] == 2
    assert min(row["kernel_ms"], row["compensated_ms"], row["means_ms"]) > 0
    assert row["extra_fraction"] == pytest.approx(
        row["compensated_ms"] / row["kernel_ms"] - 1, abs=0.01
    )


def test_rows_of_several_densities_and_head_counts_are_kept(tmp_path, monkeypatch):
    cases = (SMALL, dataclasses.replace(SMALL, density=0.5))
    monkeypatch.setattr("vidsparse.profiling.bench_compensation.default_cases", lambda _: cases)
    out = tmp_path / "compensation.json"
    for heads in ("1", "2"):
        options = f"--device cpu --impls torch --repeats 1 --heads {heads} --append --out"
        assert main([*options.split(), str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(r["heads"], r["requested_density"]) for r in rows] == [
        (1, 0.25), (1, 0.5), (2, 0.25), (2, 0.5),
    ]  # fmt: skip


def test_cases_are_chosen_by_name_and_density(tmp_path, monkeypatch, capsys):
    cases = (SMALL, dataclasses.replace(SMALL, density=0.5), dataclasses.replace(SMALL, bits=8))
    monkeypatch.setattr("vidsparse.profiling.bench_compensation.default_cases", lambda _: cases)
    options = "--device cpu --cases small --densities 0.5 --repeats 1"
    main(options.split())
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["requested_density"] == 0.5


@pytest.mark.parametrize("ragged", [False, True])
def test_the_gate_knows_what_compensation_adds(ragged):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 300, 16, generator=generator)
    if ragged:
        mask = random_ragged_mask(1, 2, 300, 300, q_blocks=5, kv_blocks=9, density=0.4,
                                  generator=generator)  # fmt: skip
    else:
        mask = random_block_mask(1, 2, 300, 300, block_q=64, block_kv=32, density=0.4,
                                 generator=generator)  # fmt: skip
    order = torch.randperm(300, generator=generator).view(1, 1, -1).int()
    plan = AttentionPlan(mask, order, order.flip(-1), compensate=True)
    output = run_plan(q, k, v, plan)
    check_sampled_rows(q, k, v, plan, output, rows=300, heads=2)
    with pytest.raises(AssertionError, match="relative error"):
        check_sampled_rows(q, k, v, dataclasses.replace(plan, compensate=False), output)
