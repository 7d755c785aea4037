import json

import pytest
import torch

from vidsparse.profiling.bench_methods import CASES, main
from vidsparse.profiling.bench_phases import bench_phases

CPU = torch.device("cpu")
SPEC = "adaspa:heads=equal"


def test_every_phase_has_a_row_and_the_run_is_their_mean():
    rows = bench_phases(CASES["tiny"], SPEC, 0.3, device=CPU, repeats=1)
    assert [row["phase"] for row in rows] == ["first search", "later search", "reuse", "run"]
    assert [row["steps"] for row in rows] == [1, 1, 38, 40]
    first, later, reuse, run = rows
    assert first["density"] == 1
    assert later["density"] == pytest.approx(0.3, abs=0.02)
    for key in ("plan_ms", "kernel_ms", "density"):
        mean = (first[key] + later[key] + 38 * reuse[key]) / 40
        assert run[key] == pytest.approx(mean, rel=1e-2, abs=2e-3)
    planning = (first["plan_ms"] + later["plan_ms"]) / (50 * run["dense_ms"])
    assert run["search_fraction"] == pytest.approx(planning, rel=1e-2)
    steps = first["total_ms"] + later["total_ms"] - 2 * reuse["total_ms"]
    expected = steps / (50 * run["dense_ms"])
    assert run["search_fraction_with_steps"] == pytest.approx(expected, rel=1e-2, abs=2e-4)


def test_phases_are_kept_apart_in_a_file(tmp_path):
    out = tmp_path / "methods.json"
    options = f"--cases tiny --methods {SPEC} --densities 0.3 --repeats 1 --device cpu --out {out}"
    for _ in range(2):
        main([*options.split(), "--append"])
    phases = [row["phase"] for row in json.loads(out.read_text())["rows"]]
    assert phases == ["first search", "later search", "reuse", "run"]


def test_a_search_of_two_steps_is_run_whole():
    look, skip, run = bench_phases(CASES["tiny"], "lite", 0.3, device=CPU, repeats=1)
    assert (look["steps"], look["density"]) == (2, 1)
    assert skip["density"] == pytest.approx(0.3, abs=0.03)
    assert run["density"] == pytest.approx((2 + 38 * skip["density"]) / 40, abs=1e-3)
