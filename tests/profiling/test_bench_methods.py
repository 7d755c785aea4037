import json

import pytest
import torch

from vidsparse.attention import run_plan
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.methods.svg2 import Svg2
from vidsparse.plan import CallSite
from vidsparse.profiling import svg2_parts
from vidsparse.profiling.bench_methods import CASES, bench_method, main
from vidsparse.profiling.gate import check_sampled_rows, kept_blocks
from vidsparse.profiling.method_spec import parse_method
from vidsparse.profiling.synthetic import video_qkv

CPU = torch.device("cpu")
SITE = CallSite("transformer", 0, 1, 5, 20, 0.5, 0, 0)
LAYOUT = VideoLayout(3, 10, 12, text_before=5)


@pytest.mark.parametrize("method", ["svg2", "svg2:compensate=true"])
def test_row_has_every_figure_and_they_agree(method):
    row = bench_method(CASES["tiny"], method, 0.3, device=CPU, repeats=2)
    assert list(row) == [
        "case",
        "method",
        "density",
        "requested_density",
        "compensate",
        "plan_ms",
        "permute_ms",
        "kernel_ms",
        "compensation_ms",
        "total_ms",
        "dense_ms",
        "overhead_fraction",
        "attention_speedup",
    ]
    assert row["density"] == pytest.approx(0.3, abs=0.05)
    parts = row["plan_ms"] + row["permute_ms"] + row["kernel_ms"]
    assert row["total_ms"] == pytest.approx(parts, abs=0.01)
    assert (row["compensation_ms"] != 0) == row["compensate"]
    assert row["compensation_ms"] < row["kernel_ms"]
    overhead = (row["plan_ms"] + row["permute_ms"] + row["compensation_ms"]) / row["dense_ms"]
    assert row["overhead_fraction"] == pytest.approx(overhead, rel=0.02)
    assert row["attention_speedup"] == pytest.approx(row["dense_ms"] / row["total_ms"], rel=0.02)


def test_command_saves_every_row(tmp_path, capsys):
    out = tmp_path / "results" / "methods.json"
    options = "--cases tiny --methods svg2,svg2:refresh_every=2 --densities 0.3,0.2 --repeats 1"
    main([*options.split(), "--device", "cpu", "--out", str(out)])
    saved = json.loads(out.read_text())
    assert [(r["method"], r["requested_density"]) for r in saved["rows"]] == [
        ("svg2", 0.3),
        ("svg2", 0.2),
        ("svg2:refresh_every=2", 0.3),
        ("svg2:refresh_every=2", 0.2),
    ]
    assert saved["meta"]["torch"] == torch.__version__
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_densities_that_a_method_cannot_reach_are_skipped_with_the_reason(tmp_path, capsys):
    out = tmp_path / "methods.json"
    options = "--cases tiny --methods svg,svg2 --densities 0.2 --repeats 1 --device cpu --out"
    main([*options.split(), str(out)])
    assert [row["method"] for row in json.loads(out.read_text())["rows"]] == ["svg2"]
    assert capsys.readouterr().err.startswith("skipped: tiny, svg at density 0.2: ")


@pytest.mark.parametrize("spec", ["svg2", "svg", "draft", "random"])
def test_any_method_passes_the_gate_with_compensation(spec):
    row = bench_method(CASES["tiny"], f"{spec}:compensate=True", 0.7, device=CPU, repeats=1)
    assert row["compensate"] is True
    assert row["density"] == pytest.approx(0.7, abs=0.1)


def test_unknown_case_names_the_known_ones(capsys):
    assert main(["--cases", "nope", "--device", "cpu"]) == 2
    assert "unknown case 'nope'; use wan14b-720p" in capsys.readouterr().err


def test_method_options_are_read():
    method = parse_method("svg2:first_iterations=7:top_p=0.9", 0.25)
    assert method == Svg2(density=0.25, first_iterations=7, top_p=0.9)


def test_method_option_without_value_says_so():
    with pytest.raises(UsageError, match="write name:key=value"):
        parse_method("svg2:top_p", 0.25)


def planned():
    q, k, v = video_qkv(LAYOUT, 1, 2, 16, CPU, torch.float32)
    method = Svg2(density=0.3, q_clusters=8, k_clusters=30)
    return q, k, v, method.plan(q, k, v, LAYOUT, SITE, method.init_state())


def test_gate_lets_right_outputs_pass_and_stops_wrong_ones():
    q, k, v, plan = planned()
    output = run_plan(q, k, v, plan)
    check_sampled_rows(q, k, v, plan, output, rows=LAYOUT.num_tokens, heads=2)
    output.out[0, 1, -1] *= 1.01
    with pytest.raises(AssertionError, match="head 1 of row 0"):
        check_sampled_rows(q, k, v, plan, output, rows=LAYOUT.num_tokens, heads=2)
    output.out[0, 0, 0] = float("nan")
    with pytest.raises(AssertionError, match="head 0 of row 0: relative error nan"):
        check_sampled_rows(q, k, v, plan, output, rows=LAYOUT.num_tokens, heads=2)


def test_kept_blocks_are_the_plans_mask_in_natural_order():
    _, _, _, plan = planned()
    rows = torch.arange(LAYOUT.num_tokens)
    mask = torch.empty(LAYOUT.num_tokens, LAYOUT.num_tokens, dtype=torch.bool)
    token_mask = plan.mask.token_mask()[0, 1]
    mask[plan.q_order[0, 1].long()[:, None], plan.kv_order[0, 1].long()] = token_mask
    kept, columns = kept_blocks(plan, rows, 0, 1)
    assert kept[:, columns].equal(mask)


def test_synthetic_tokens_attend_to_few_others():
    q, k, _ = video_qkv(LAYOUT, 1, 4, 64, CPU, torch.float32)
    assert video_qkv(LAYOUT, 1, 4, 64, CPU, torch.float32)[0].equal(q)
    video = slice(LAYOUT.text_before, LAYOUT.video_end)
    weights = torch.softmax(q[:, :, video] @ k[:, :, video].mT / 8, -1)
    best = weights.sort(-1, descending=True).values[..., : LAYOUT.video_tokens // 4].sum(-1)
    assert (best.mean((0, 2)) > 0.6).all()


def test_parts_of_svg2_are_timed_and_saved(tmp_path):
    out = tmp_path / "parts.json"
    svg2_parts.main(["--case", "tiny", "--device", "cpu", "--repeats", "1", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    names = {row["part"] for row in rows}
    assert {"dense sdpa", "whole plan", "cluster k", "score", "kernel", "restore"} <= names
    assert all(row["ms"] > 0 for row in rows)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["svg2"])
def test_methods_run_at_real_size(method):
    row = bench_method(CASES["wan1.3b-480p"], method, 0.3, device=torch.device("cuda"), repeats=2)
    assert row["attention_speedup"] > 1
