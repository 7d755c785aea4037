import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vidsparse.errors import UsageError
from vidsparse.generate import Sampling
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing
from vidsparse.plan import AttentionPlan
from vidsparse.profiling.amdahl import ceiling, ceilings, crossing
from vidsparse.profiling.break_even import break_even, smaller_layouts
from vidsparse.profiling.dense_run import ObservedAttention, observe
from vidsparse.profiling.layout_curves import DENSITIES, ORDERS, best_recall, spread
from vidsparse.profiling.model_profile import profile_model
from vidsparse.profiling.profile_figure import draw_profile

SAMPLING = Sampling(192, 192, 9, 6, 4.0)
TIMED = {
    "heads": 1, "head_dim": 16, "dtype": torch.float32, "device": torch.device("cpu"), "repeats": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def wan():
    return testing.wan(layers=2, head_dim=16)


@pytest.fixture(scope="module")
def profile(wan):
    return profile_model(wan.pipe, "a cat", SAMPLING, methods=("draft",))


# peers.md section 0: attention 70 % of the time.
@pytest.mark.parametrize(
    ("warm_up", "density", "speedup"), [(0.3, 0.3, 1.52), (0.1, 0.3, 1.79), (0.0, 0.15, 2.47)]
)
def test_ceiling_is_amdahls(warm_up, density, speedup):
    assert ceiling(0.7, density, warm_up) == pytest.approx(speedup, abs=0.005)


def test_ceiling_is_what_was_measured_on_large_models():
    file = Path(__file__).parents[2] / "profiling" / "results" / "model-h200.json"
    rows = [r for r in json.loads(file.read_text())["rows"] if "8bit" not in r["method"]]
    assert rows
    for row in rows:
        # What a density would take if kernels took that share of the time, no more and no less.
        share, density = row["attention_share"], 1 / row["attention_speedup"]
        # The rest of a step is timed anew, beside other kernels: by 3 % at most.
        assert row["step_speedup"] == pytest.approx(ceiling(share, density, 0.0), rel=0.04)
        assert row["e2e_speedup_50"] == pytest.approx(ceiling(share, density, 0.2), rel=0.04)


def test_ceiling_without_attention_or_sparsity_is_one():
    assert ceiling(0.0, 0.1, 0.0) == ceiling(0.7, 1.0, 0.0) == ceiling(0.7, 0.1, 1.0) == 1
    assert max(row["speedup"] for row in ceilings(0.5)) < 2


@pytest.mark.parametrize(
    ("dense", "sparse", "tokens"),
    [
        ([1, 4, 16], [2, 3, 8], 1600),
        ([1, 4, 16], [2, 5, 20], None),
        ([3, 6, 12], [1, 2, 3], 1000),
        # A lucky small size does not count where a larger one is slower again.
        ([3, 4, 16], [1, 5, 8], 2333),
    ],
)
def test_break_even_is_where_sparse_wins_for_good(dense, sparse, tokens):
    assert crossing([1000, 2000, 4000], dense, sparse) == tokens


def test_layouts_shrink_in_frames_to_the_models_own():
    made = smaller_layouts(VideoLayout(21, 30, 52, text_after=10))
    assert [one.frames for one in made] == [3, 5, 10, 21]
    assert made[-1].num_tokens == 21 * 30 * 52 + 10


def test_no_grid_of_one_frame_stands_for_a_video(caplog):
    layout = VideoLayout(5, 16, 16)
    assert [one.frames for one in smaller_layouts(layout)] == [2, 5]
    assert [one.frames for one in smaller_layouts(VideoLayout(1, 16, 16))] == [1]
    with pytest.raises(UsageError, match=r"use a density of at least"):
        break_even("svg", layout, **TIMED)
    assert caplog.text == ""


def test_break_even_says_which_sizes_were_not_measured():
    found = break_even("svg", VideoLayout(5, 16, 16), density=0.4, **TIMED)
    assert (found.tokens, found.refused) == ((1280,), (512,))
    assert "; not measured at 512 tokens: density=0.4 is too small here" in found.line()
    slow = replace(found, break_even=None, refused=(), why=None, dense_ms=(1.0,), sparse_ms=(2.0,))
    assert slow.line() == (
        "svg at density 0.4 is not faster than dense up to 1280 tokens; 0.50x per call at 1280"
    )


def test_spread_takes_both_ends():
    assert spread(3, 8) == [0, 1, 2]
    assert spread(40, 5) == [0, 10, 20, 29, 39]


def uniform_plan(seq, block):
    every = torch.ones(1, 1, -(-seq // block), -(-seq // block), dtype=torch.bool)
    mask = BlockMask.from_dense(every, block_q=block, block_kv=block, seq_q=seq, seq_kv=seq)
    return AttentionPlan(mask)


def test_best_recall_of_even_mass_is_the_density():
    plan = uniform_plan(100, 32)
    sizes = torch.tensor([32.0, 32, 32, 4])
    mass = (sizes[:, None] * sizes / 100).expand(2, 4, 4).contiguous()
    found = best_recall(mass, plan, DENSITIES)
    assert found.shape == (2, len(DENSITIES))
    assert torch.allclose(found, torch.tensor(DENSITIES).expand(2, -1), atol=1e-5)


def test_best_recall_takes_the_heaviest_blocks_first():
    mass = torch.tensor([[[90.0, 10.0], [20.0, 80.0]]])
    found = best_recall(mass, uniform_plan(200, 100), (0.25, 0.5, 0.75, 1.0))
    assert torch.allclose(found, torch.tensor([[0.45, 0.85, 0.95, 1.0]]), atol=1e-5)


def test_profile_looks_at_every_order_layer_and_step(profile):
    seen = {(curve.order, curve.layer, curve.step) for curve in profile.curves}
    assert seen == {
        (name, layer, step) for name in ORDERS for layer in (0, 1) for step in (0, 2, 3, 5)
    }
    for curve in profile.curves:
        rising = curve.recall.diff(dim=1)
        assert (rising > -1e-5).all()
        assert (curve.recall >= torch.tensor(DENSITIES) - 1e-3).all()


def test_profile_times_only_what_nobody_looked_at(profile):
    assert 0 < profile.attention_share < 1
    assert profile.layout.grid == (3, 12, 12)
    # Six steps, two branches, two layers.
    assert profile.attention_calls == 24


def test_profile_says_what_does_not_work_here(profile):
    # Three frames: the first one alone is a third of the keys.
    assert "the first frame" in profile.skipped["head types"]
    (draft,) = profile.break_evens
    assert draft.tokens == (288, 432)


def test_profile_is_json_text_and_a_picture(profile, tmp_path):
    values = json.loads(json.dumps(profile.as_dict(), allow_nan=False))
    assert set(values["recall"]) == set(ORDERS)
    assert any("speed-up at most" in line for line in profile.lines())
    draw_profile(profile).savefig(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_observing_changes_nothing_and_leaves_nothing(wan):
    from vidsparse.generate import sample

    plain = sample(wan.pipe, "a cat", SAMPLING, seed=3).video
    seen = observe(wan.pipe, ObservedAttention(), "a cat", SAMPLING, seed=3).video
    assert torch.equal(seen, plain)
    assert torch.equal(sample(wan.pipe, "a cat", SAMPLING, seed=3).video, plain)


def test_too_few_steps_are_refused(wan):
    few = Sampling(192, 192, 9, 1, 4.0)
    with pytest.raises(UsageError, match="use more than 4 steps"):
        profile_model(wan.pipe, "a cat", few)
