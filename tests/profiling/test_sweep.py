import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("pydantic")

from vidsparse.errors import UsageError
from vidsparse.generate import Sampling
from vidsparse.layout import VideoLayout
from vidsparse.methods.dense import Dense
from vidsparse.methods.random_blocks import RandomBlocks
from vidsparse.methods.svg2 import Svg2
from vidsparse.pipelines.testing import wan
from vidsparse.plan import CallSite
from vidsparse.profiling.method_spec import parse_method, split_methods
from vidsparse.profiling.rows import RowFile
from vidsparse.profiling.sites import Capture, Captured, RecallJudge, settled_plan
from vidsparse.profiling.sweep import SweepSettings, generate, grammar_prompts, main, quality_sweep

LAYOUT = VideoLayout(3, 10, 12)
SMALL = Svg2(density=0.3, k_clusters=60, q_clusters=60, first_iterations=1)
SITE = CallSite("transformer", 3, 8, 5, 20, 0.5, 0, 0)

# 3 x 12 x 12 = 432 tokens: above the length where sparse attention begins.
SAMPLING = Sampling(height=24, width=24, num_frames=3, steps=4, guidance=1.0)
SETTINGS = SweepSettings(("a", "b"), (0, 1), SAMPLING, dense_steps=0.25, grid="test")


class TinyPipeline:
    """As much of a text-to-video pipeline as a sweep sees: noise denoised in four steps."""

    def __init__(self):
        diffusers = pytest.importorskip("diffusers")
        torch.manual_seed(0)
        self.transformer = diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=3,
            out_channels=3,
            text_dim=8,
            freq_dim=16,
            ffn_dim=32,
            num_layers=3,
            rope_max_seq_len=32,
        ).eval()
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()

    def __call__(self, *, prompt, generator, height, width, num_frames, **options):
        self.scheduler.set_timesteps(options["num_inference_steps"])
        shape = (3, num_frames, height, width)
        x = torch.stack([torch.randn(shape, generator=each) for each in generator])
        text = torch.stack([torch.full((4, 8), float(ord(p[0]))) for p in prompt]) / 100
        for t in self.scheduler.timesteps:
            velocity = self.transformer(x, t.expand(len(x)), text, return_dict=False)[0]
            x = self.scheduler.step(velocity, t, x, return_dict=False)[0]
        return SimpleNamespace(frames=(x / 4 + 0.5).transpose(1, 2))


@pytest.fixture(scope="module")
def pipe():
    return TinyPipeline()


def tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 2, LAYOUT.num_tokens, 16, generator=generator) for _ in range(3))
    return Captured(q * 2, k, v, LAYOUT, SITE)


def test_rows_hold_what_the_issues_ask_for(pipe):
    seen = []
    rows = quality_sweep(
        pipe, ["svg2", "random"], [0.5, 0.25], SETTINGS, floor_pipe=pipe, on_row=seen.append
    )
    assert rows == seen
    assert [(r["method"], r["requested_density"]) for r in rows] == [
        ("svg2", 0.5),
        ("random", 0.5),
        ("svg2", 0.25),
        ("random", 0.25),
    ]
    for row in rows:
        assert row["grid"] == "test"
        assert row["tokens"] == 432
        assert row["clips"] == len(row["psnr_per_clip"]) == 2
        assert row["density"] == pytest.approx(row["requested_density"], abs=0.1)
        assert 0 < row["recall"] < 1
        assert 0 < row["psnr"] < 100
        # The same pipeline in the same precision: no distance.
        assert row["floor_psnr"] == 100


def test_all_kept_has_the_reference_psnr_and_full_recall(pipe):
    (row,) = quality_sweep(pipe, ["svg2:top_p=1.0"], [0.5], SETTINGS)
    assert row["density"] == 1
    assert row["recall"] == pytest.approx(1, abs=1e-5)
    # Equal up to the order of float32 sums.
    assert row["psnr"] > 90


def test_pipeline_is_left_as_it_was(pipe):
    before = [block.attn1.processor for block in pipe.transformer.blocks]
    quality_sweep(pipe, ["random"], [0.5], SETTINGS, with_recall=False)
    assert all(
        block.attn1.processor is processor
        for block, processor in zip(pipe.transformer.blocks, before, strict=True)
    )


def test_without_recall_there_are_none(pipe):
    (row,) = quality_sweep(pipe, ["random"], [0.5], SETTINGS, with_recall=False)
    assert row["recall"] is row["oracle_recall"] is None
    assert row["floor_psnr"] is None


def test_no_point_begins_after_the_deadline(pipe):
    assert not quality_sweep(pipe, ["random"], [0.5], SETTINGS, deadline=time.monotonic() - 1)


def test_clips_do_not_depend_on_how_many_run_at_once(pipe):
    both = generate(pipe, SweepSettings(("a", "b"), (0, 1), SAMPLING, clips_at_once=2))
    for one, other in zip(generate(pipe, SETTINGS), both, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_densities_that_a_method_cannot_reach_are_skipped_with_the_reason(pipe):
    skipped = []
    (row,) = quality_sweep(
        pipe, ["svg", "random"], [0.2], SETTINGS, with_recall=False, on_skip=skipped.append
    )
    assert row["method"] == "random"
    assert skipped[0].startswith("svg at density 0.2: ")


def test_unknown_method_is_refused_before_anything_runs():
    with pytest.raises(UsageError, match="unknown method 'nope'"):
        quality_sweep(None, ["nope"], [0.5], SETTINGS)


@pytest.mark.parametrize("prompts", [(), ("a",)])
def test_prompts_and_seeds_must_pair(prompts):
    with pytest.raises(UsageError, match="one of each per clip"):
        SweepSettings(prompts, (0, 1), SAMPLING)


def test_capture_keeps_the_first_row_at_sparse_sites_only():
    capture = Capture(density=0.5, first_step=4)
    q = torch.randn(2, 1, LAYOUT.num_tokens, 8)
    for step in range(20):
        for layer in range(8):
            for branch in range(2):
                site = CallSite("transformer", layer, 8, step, 20, 0.5, branch, 0)
                assert capture.plan(q, q, q, LAYOUT, site, None) is None
    sites = [(found.site.step, found.site.layer) for found in capture.found]
    assert sites == [(s, n) for s in (8, 16) for n in (1, 4, 6)]
    assert all(found.q.equal(q[:1]) and found.site.branch == 0 for found in capture.found)


def test_judge_ranks_clusters_above_random_and_dense_is_full():
    judge = RecallJudge([tokens(0), tokens(1)])
    clusters, blind = (judge.of(m) for m in (SMALL, RandomBlocks(density=0.3)))
    assert judge.of(Dense()) == 1
    assert blind == pytest.approx(0.3, abs=0.1)
    assert clusters > blind + 0.1
    assert blind < judge.oracle(0.3) < 1


def test_plans_are_judged_after_they_settled():
    call = tokens()
    state = SMALL.init_state()
    for step in (5, 6, 7):
        site = replace(SITE, step=step)
        last = SMALL.plan(call.q, call.k, call.v, LAYOUT, site, state)
    assert settled_plan(SMALL, call).q_order.equal(last.q_order)


def test_judge_without_sites_has_no_answer():
    assert RecallJudge([]).of(Dense()) is None


def test_row_file_keeps_rows_and_replaces_the_same_point(tmp_path):
    path = tmp_path / "results" / "rows.json"
    first = RowFile(path, {"device": "x"})
    first({"method": "a", "grid": "g", "requested_density": 0.5, "psnr": 1})
    first({"method": "b", "grid": "g", "requested_density": 0.5, "psnr": 2})
    more = RowFile(path, {"device": "y"}, append=True)
    more({"method": "a", "grid": "g", "requested_density": 0.5, "psnr": 3})
    saved = json.loads(path.read_text())
    assert [(row["method"], row["psnr"]) for row in saved["rows"]] == [("b", 2), ("a", 3)]
    assert [row["device"] for row in saved["rows"]] == ["x", "y"]
    assert saved["meta"] == {"device": "y"}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"dtype": "bfloat16"},
        {"size": [64, 64, 9]},
        {"num_steps": 40},
        {"dense_steps": 0.5},
        {"clips": 1},
        {"compiled": True},
    ],
)
def test_row_file_keeps_rows_of_other_settings(tmp_path, change):
    path, row = tmp_path / "rows.json", {"method": "a", "requested_density": 0.5}
    RowFile(path, {"device": "x"})(row)
    RowFile(path, {"device": "x"}, append=True)(row | change)
    assert json.loads(path.read_text())["rows"] == [
        {**row, "device": "x"},
        {**row, **change, "device": "x"},
    ]


def test_rows_say_where_they_were_measured(pipe):
    settings = replace(SETTINGS, model="a-model")
    (row,) = quality_sweep(pipe, ["random"], [0.5], settings, with_recall=False)
    assert row["model"] == "a-model"
    assert row["dtype"] == "float32"
    assert row["grid"] == "test"
    assert row["size"] == [SAMPLING.width, SAMPLING.height, SAMPLING.num_frames]
    assert (row["num_steps"], row["dense_steps"]) == (SAMPLING.steps, 0.25)


def test_row_file_keeps_its_rows_when_it_is_killed_while_writing(tmp_path, cut_off_writes):
    path = tmp_path / "rows.json"
    keep = RowFile(path, {"device": "x"})
    keep({"method": "a", "psnr": 1})
    cut_off_writes()
    with pytest.raises(KeyboardInterrupt):
        keep({"method": "b", "psnr": 2})
    assert [row["method"] for row in json.loads(path.read_text())["rows"]] == ["a"]


def test_grammar_prompts_are_sentences_and_stay_the_same():
    from vidsparse.models.grammar import parse_caption

    prompts = grammar_prompts(6)
    assert len(set(prompts)) == 6
    assert prompts == grammar_prompts(6)
    assert [str(parse_caption(prompt)) for prompt in prompts] == list(prompts)


def test_command_says_what_is_wrong_in_one_line(capsys, tmp_path):
    missing = Path(tmp_path) / "none"
    assert main(["--model", str(missing), "--device", "cpu", "--steps", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.fixture
def folder(tmp_path):
    wan(layers=1).pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


COMMAND = ["--device", "cpu", "--no-floor", "--no-recall", "--methods", "dense", "--clips", "2"]
SIZE = ["--height", "32", "--width", "32", "--num-frames", "5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps=0 must be at least 1"),
        (["--steps", "2", "--height", "0"], "height=0 must be at least 1"),
        (["--steps", "2", "--prompts", "none.txt"], "cannot read prompts from none.txt"),
        (["--steps", "2", "--prompts", "one.txt"], "one.txt has 1 different prompts; --clips 2"),
    ],
)
def test_command_refuses_before_it_generates(
    folder, capsys, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("# two lines, one prompt\na cat\n  a cat\n")
    assert main(["--model", str(folder), *COMMAND, *SIZE, *options]) == 2
    # Loading draws bars there, too.
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


def test_commas_in_brackets_do_not_end_a_method():
    specs = split_methods("oracle,compensated:blocks=[128,64]:rank=mass,draft")
    assert specs == ["oracle", "compensated:blocks=[128,64]:rank=mass", "draft"]
    assert parse_method(specs[1], 0.5).blocks == (128, 64)
