from contextlib import contextmanager
from dataclasses import dataclass

import pytest

import vidsparse
from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.generate import Sampling
from vidsparse.pipelines import testing
from vidsparse.profiling.dense_run import ObservedAttention
from vidsparse.tuning.candidates import Variant
from vidsparse.tuning.errors import PlanErrors, mean_errors
from vidsparse.tuning.journal import Journal
from vidsparse.tuning.lab import PipelineLab, Trial
from vidsparse.tuning.settings import TuneSettings
from vidsparse.tuning.target import Target
from vidsparse.tuning.tune import Search
from vidsparse.tuning.validate import Validator, choose

# 432 tokens, four steps, no guidance: half a second a clip.
SAMPLING = Sampling(192, 192, 9, 4, 1.0)
SCENE, OTHER = Scene("a cat", 0), Scene("a dog", 1)
SPARSE = SparseConfig(method="draft", parameters={"density": 0.3}, dense_steps=0)


@dataclass
class WorkClock:
    """Seconds are work: 10 for a dense clip, of which attention is 6."""

    def clip(self, clip, config):
        return 10.0 if config is None else 10.0 * self.step(config)

    def steps(self, marks, config):
        return [1.0 if config is None else self.step(config)] * (len(marks) - 1)

    def step(self, config):
        return (0.4 + 0.6 * config.build()[0].density) * (1 if config.cache is None else 0.9)


@pytest.fixture(scope="module")
def pipe():
    return testing.wan(layers=2, head_dim=16).pipe


def lab(pipe, folder=None):
    return PipelineLab(pipe, SAMPLING, "no LPIPS", folder=folder, clock=WorkClock())


def test_trial_measures_quality_density_and_latents(pipe):
    made = lab(pipe)
    trial = made.trial(SPARSE, SCENE)
    assert 20 < trial.scores.psnr < 100
    assert trial.scores.lpips is None
    assert trial.seconds == pytest.approx(10 * (0.4 + 0.6 * 0.3))
    assert 0.3 <= trial.density < 0.5
    assert [step for step, _ in trial.checks] == [2, 3]
    assert trial.checks[0][1] < trial.checks[1][1]
    assert Trial.from_dict(trial.as_dict()) == trial


def test_doomed_clip_ends_early_and_leaves_the_pipeline_whole(pipe):
    made = lab(pipe)
    made.dense(SCENE)
    seen = []

    def doomed(step, error):
        seen.append(step)
        return step == 2

    trial = made.trial(SPARSE, SCENE, doomed)
    assert (trial.stopped, trial.scores, seen) == (2, None, [2])
    assert made.trial(SparseConfig(method="dense"), SCENE).scores.psnr == 100


def test_dense_clips_survive_in_the_folder(pipe, tmp_path):
    first = lab(pipe, tmp_path)
    first.dense(SCENE)
    expected = first.trial(SPARSE, SCENE)
    second = lab(pipe, tmp_path)
    assert second.trial(SPARSE, SCENE) == expected
    assert second.generations == 1


def test_a_torn_dense_clip_is_made_again(pipe, tmp_path):
    first = lab(pipe, tmp_path)
    first.dense(SCENE)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    assert lab(pipe, tmp_path).trial(SPARSE, SCENE) == first.trial(SPARSE, SCENE)
    assert file.read_bytes() == whole


def test_a_dense_clip_that_cannot_be_written_leaves_no_file(pipe, tmp_path, monkeypatch):
    def torn(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", torn)
    with pytest.raises(UsageError, match="No space left"):
        lab(pipe, tmp_path).dense(SCENE)
    assert list(tmp_path.iterdir()) == []


def test_short_runs_time_each_step(pipe):
    assert lab(pipe).short(SPARSE, 3, SCENE) == pytest.approx([0.58] * 3)
    real = PipelineLab(pipe, SAMPLING, "no LPIPS").short(None, 3, SCENE)
    assert len(real) == 3
    assert min(real) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"dense_steps": 2},
        {"dense_layers": 1.0},
        {"precision": "8bit-sparse"},
        {"impl": "reference"},
    ],
)
def test_warm_up_is_sparse_and_once_per_kernel(pipe, monkeypatch, change):
    seen, enabled = [], vidsparse.enabled

    @contextmanager
    def spy(pipe, **given):
        with enabled(pipe, **given) as handle:
            yield handle
            seen.append(handle.summary().as_dict()["sparse_calls"])

    monkeypatch.setattr(vidsparse, "enabled", spy)
    made = lab(pipe)
    made._warm_up(SPARSE, SCENE)
    made._warm_up(SPARSE, SCENE)
    assert len(seen) == 1
    if not {"precision", "impl"} & set(change):
        made._warm.clear()
    made._warm_up(SPARSE.model_copy(update=change), SCENE)
    assert seen == [seen[0]] * 2
    assert seen[0] > 0


def test_floor_is_none_without_another_run(pipe):
    made = lab(pipe)
    assert made.floor(SCENE) is None
    made.floor_pipe = pipe
    assert made.floor(SCENE).psnr == 100


def test_errors_fall_with_density_and_refusals_are_kept(pipe):
    variants = [Variant("draft", {}, ()), Variant("svg", {}, ())]
    looker = PlanErrors(variants, (0.3, 0.7))
    lab(pipe).observe(ObservedAttention((looker,), (0.3, 0.8)), SCENE)
    errors = mean_errors(looker.found)
    assert errors["draft"][0.3] > errors["draft"][0.7] > 0
    # One frame of three is more than 0.3 of the pairs.
    assert "the first frame" in looker.skipped["svg at density 0.3"]


def settings(**given):
    chosen = {"methods": ("draft",), "caches": ("first_block",), "warm_ups": (0.25,), **given}
    return TuneSettings(Target(min_psnr=50), (SCENE,), **chosen)


@pytest.fixture(scope="module")
def searched(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    made = lab(pipe, folder)
    search = Search(made, Journal(folder, {}), settings())
    search.run()
    return search


def test_search_on_a_pipeline_beats_dense_and_keeps_the_target(searched):
    best = searched.best
    assert best.outcome is not None
    assert best.outcome.scores.psnr >= 50
    assert best.seconds < 10
    # All clips of the search, and the dense and observed ones.
    assert searched.lab.generations < 30


def test_search_predicts_what_the_clock_says(searched):
    for outcome in searched.outcomes:
        if outcome.seconds is None or outcome.candidate.config.cache is not None:
            continue
        dense = searched.speed
        sparse = len(dense.sparse_sigmas(outcome.candidate.config))
        # The clock of this test knows no dense steps: it counts every step as sparse.
        if sparse == len(dense.sigmas):
            predicted = dense.predict_raw(outcome.candidate)
            assert predicted == pytest.approx(outcome.seconds, rel=1e-6)


def test_resumed_search_generates_nothing(searched, pipe):
    made = lab(pipe, searched.journal.folder)
    again = Search(made, Journal(searched.journal.folder, {}), settings())
    again.run()
    assert made.generations == 0
    assert again.best.seconds == searched.best.seconds
    assert again.best.outcome.candidate.key == searched.best.outcome.candidate.key


def test_held_out_scenes_validate_with_an_interval(searched):
    scenes = OTHER, Scene("a cow", 2)
    target = Target(min_psnr=40)
    validator = Validator(searched.lab, searched.journal, scenes, target, searched.speed)
    done = choose(searched, validator)
    assert done[-1].meets
    assert done[-1].psnr.low <= done[-1].scores.psnr <= done[-1].psnr.high
    assert done[-1].speedup > 1


def test_nothing_that_can_run_is_an_error(pipe):
    search = Search(lab(pipe), Journal(None, {}), settings(methods=("svg",)))
    with pytest.raises(UsageError, match="no sparse method can run on this model at this size"):
        search.run()
