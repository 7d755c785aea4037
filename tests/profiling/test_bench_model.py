import json

import pytest
import torch
from torch._dynamo.utils import counters

from vidsparse.attention import dense_attention
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import Phase, build_method
from vidsparse.pipelines.base import family_of
from vidsparse.profiling.bench_model import (
    ModelBench,
    StepTimes,
    check_memory,
    dense_without_mask,
    main,
    mean_sparse_step,
    with_layers,
)
from vidsparse.profiling.model_shapes import SHAPES, Maker, find_shape

CPU = torch.device("cpu")


def one_block_on_meta(shape):
    with torch.device("meta"):
        return with_layers(shape, 2).build(torch.device("meta"), torch.bfloat16)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_inputs_of_every_shape_have_the_tokens_that_it_claims(shape):
    model = one_block_on_meta(shape)
    inputs = shape.inputs(shape, model, Maker(CPU, torch.float16))
    family = family_of(model)
    layout = family.layout(model, inputs)
    assert layout.grid == shape.grid
    attentions = family.self_attentions(model)
    assert len(attentions) == 2
    heads = getattr(attentions[0], "heads", None) or model.config.num_attention_heads
    assert heads == shape.heads
    assert model.config.attention_head_dim == shape.head_size


def test_released_sizes_are_those_of_the_papers():
    assert find_shape("wan2.1-14b-720p").tokens == 75_600
    assert find_shape("hunyuanvideo-720p-129f").tokens == 118_800 + 256
    assert find_shape("cogvideox1.5-5b").tokens == 44_880 + 226
    # 14 billion parameters in bfloat16 are 26 GiB, activations come on top.
    assert 26 < find_shape("wan2.1-14b-720p").bytes_needed(torch.bfloat16) / 2**30 < 45


def steps(*milliseconds):
    return [StepTimes(float(ms), {"kernel": float(ms) / 2, "other": ms / 2}) for ms in milliseconds]


def test_the_first_sparse_step_counts_once_in_forty():
    mean = mean_sparse_step(build_method("draft", {}), [steps(100, 50, 10, 10, 10, 10)])
    assert mean.step_ms == pytest.approx((50 + 39 * 10) / 40)
    assert mean.attention_ms == pytest.approx(mean.step_ms / 2)


def test_searches_count_as_often_as_a_run_of_fifty_steps_has_them():
    method = build_method("adaspa", {})
    short = {step: phase.name for phase in method.phases(6, 1) for step in phase.steps}
    cost = {"first search": 200, "later search": 100, "reuse": 10}
    run = steps(100, *(cost[short[step]] for step in range(1, 6)))
    assert mean_sparse_step(method, [run]).step_ms == pytest.approx((200 + 100 + 38 * 10) / 40)


def test_parts_of_unlike_steps_still_add_up_to_a_step():
    run = [
        StepTimes(ms, {"kernel": kernel, "other": ms - kernel})
        for ms, kernel in ((90.0, 10.0), (60.0, 1.0), (60.0, 40.0), (50.0, 45.0), (70.0, 5.0))
    ]
    mean = mean_sparse_step(build_method("draft", {}), [[StepTimes(99.0, {}), *run]])
    assert sum(mean.parts.values()) == pytest.approx(mean.step_ms)


def test_a_phase_that_short_runs_lack_is_an_error(monkeypatch):
    method = build_method("draft", {})
    phases = {6: (Phase("a", (1, 2, 3, 4, 5)),), 50: (Phase("a", (10,)), Phase("b", (11,)))}
    monkeypatch.setattr(type(method), "phases", lambda self, num_steps, first: phases[num_steps])
    with pytest.raises(UsageError, match="has no b"):
        mean_sparse_step(method, [steps(1, 1, 1, 1, 1, 1)])


def test_a_row_adds_up_and_reports_every_part(tmp_path, capsys):
    out = tmp_path / "model.json"
    arguments = ["--shape", "tiny-cpu", "--methods", "draft,svg", "--density", "0.25"]
    assert main([*arguments, "--device", "cpu", "--out", str(out)]) == 0
    # SVG's least density is above 0.25 on this small grid.
    assert "skipped: tiny-cpu, svg at density 0.25" in capsys.readouterr().err
    (row,) = json.loads(out.read_text())["rows"]
    parts = [row[f"{part}_ms"] for part in ("plan", "permute", "kernel", "other")]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= row["step_ms"] * 1.01
    assert row["density"] == pytest.approx(0.25, abs=0.02)
    assert row["step_speedup"] == pytest.approx(row["dense_ms"] / row["step_ms"], rel=1e-2)
    ceiling = 1 / (1 - row["attention_share"] * (1 - row["density"]))
    assert row["amdahl_fraction"] == pytest.approx(row["step_speedup"] / ceiling, rel=1e-2)


def test_compiled_blocks_are_one_graph_for_dense_and_sparse_steps():
    torch.compiler.reset()
    counters.clear()
    bench = ModelBench(find_shape("tiny-cpu"), CPU, compiler="eager")
    (row,) = bench.rows(["draft"], 0.25)
    assert row["compiled"]
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    torch.compiler.reset()


def test_blocks_that_diffusers_does_not_name_are_not_compiled():
    with pytest.raises(UsageError, match=r"names no repeated blocks.*without --compile"):
        ModelBench(find_shape("mochi"), torch.device("cuda"), compiler="inductor")


def test_dense_attention_beside_padding_text_sees_real_tokens_only():
    layout = VideoLayout(2, 4, 4, text_after=6, text_valid=(2, 6))
    q, k, v = torch.randn(3, 2, 1, 38, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    out = dense_without_mask(layout, q, k, v)
    for row, end in enumerate((34, 38)):
        real = (slice(row, row + 1), slice(None), slice(0, end))
        torch.testing.assert_close(out[real], dense_attention(q[real], k[real], v[real]))
    assert not out[0, :, 34:].any()
    alone = [x[1:] for x in (q, k, v)]
    one = VideoLayout(2, 4, 4, text_after=6, text_valid=(6,))
    assert torch.equal(dense_without_mask(one, *alone), dense_attention(*alone))


def test_8bit_steps_stand_beside_a_dense_step_in_full_precision(tmp_path):
    out = tmp_path / "model.json"
    arguments = ["--shape", "tiny-cpu", "--methods", "dense@8bit", "--device", "cpu"]
    assert main([*arguments, "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    # On a CPU 8 bits are simulated, which takes longer than the real thing.
    assert row["warm_up_ms"] > row["dense_ms"]
    assert row["density"] == 1.0


def test_what_cannot_run_is_refused_before_anything_is_allocated(monkeypatch, capsys):
    assert main(["--shape", "wan2.1-14b-720p", "--device", "cpu"]) == 2
    assert "use a GPU, or --shape tiny-cpu" in capsys.readouterr().err
    assert main(["--shape", "sora", "--device", "cpu"]) == 2
    assert "choose one of wan2.1-14b-720p" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 2**30, 80 * 2**30))
    with pytest.raises(UsageError, match=r"needs at least 3\d\.\d GiB.*10\.0 GiB free"):
        check_memory(find_shape("wan2.1-14b-720p"), torch.device("cuda"), torch.bfloat16)
    with pytest.raises(UsageError, match="must lie in 1 to 40"):
        ModelBench(find_shape("wan2.1-14b-720p"), CPU, 41)


def test_methods_are_not_cut_within_brackets(monkeypatch):
    asked = []
    monkeypatch.setattr(ModelBench, "rows", lambda self, specs, *_, **__: asked.append(specs) or [])
    methods = "draft:blocks=[64,64],svg"
    arguments = ["--shape", "tiny-cpu", "--layers", "1", "--device", "cpu"]
    assert main([*arguments, "--methods", methods]) == 0
    assert asked == [["draft:blocks=[64,64]", "svg"]]
