import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.plan import CallSite
from vidsparse.preset_parts import ModelId
from vidsparse.profiling.dense_run import Look
from vidsparse.tuning import report as tuning_report
from vidsparse.tuning import scout as tuning_scout
from vidsparse.tuning.candidates import Candidate
from vidsparse.tuning.journal import Journal
from vidsparse.tuning.lab import never
from vidsparse.tuning.report import finish
from vidsparse.tuning.search import WORTHWHILE, Best, Outcome
from vidsparse.tuning.settings import TuneSettings
from vidsparse.tuning.speed import SpeedModel
from vidsparse.tuning.target import Scores, Target
from vidsparse.tuning.tune import Search
from vidsparse.tuning.validate import EQUAL_TIME, Validator, choose, denser

sys.path.insert(0, str(Path(__file__).parent))
from fake_lab import DENSE_SECONDS, LAYERS, SIGMAS, STEPS, FakeLab, seconds_of

SCENES = (Scene("a", 0), Scene("b", 1))
METHODS = ("svg", "draft", "svg2")


def search(lab, folder=None, *, target=None, **settings):
    chosen = TuneSettings(
        target or Target(min_psnr=27), SCENES, methods=METHODS, **{"caches": (), **settings}
    )
    return Search(lab, Journal(folder, {"x": 1}), chosen)


def brute_force(lab, target, *, warm_ups):
    """The least time over every rung of every arm, uniform densities only."""
    from fake_lab import SIGMAS

    from vidsparse.tuning.candidates import variants_of, warm_up_sigma

    times = [
        seconds_of(candidate.config)
        for variant in variants_of(METHODS)
        for share in warm_ups
        for candidate in variant.arm(share, warm_up_sigma(SIGMAS, share)).ladder
        if lab.psnr(candidate.config) >= target
    ]
    return min([*times, DENSE_SECONDS])


@pytest.mark.parametrize("psnr", [22, 25, 27, 29, 31])
def test_search_finds_the_fastest_settings_with_few_clips(psnr):
    lab = FakeLab()
    best = search(lab, target=Target(min_psnr=psnr), allocate=False).run()
    exact = brute_force(lab, psnr, warm_ups=(0.2, 0.1, 0.3, 0.0))
    # Finer densities than those of the ladders may still be found.
    assert 0.9 * exact <= best.seconds <= exact / (1 - WORTHWHILE)
    # Each of 12 arms has 8 or 9 rungs: 200 clips in all. Clips of the screening count too.
    assert sum(entry.startswith("trial") for entry in lab.log) <= 38


class _MisleadingLab(FakeLab):
    """Half-way the weakest variant is nearest to the dense latents."""

    def trial(self, config, scene, doomed=None):
        made = super().trial(config, scene)
        return dataclasses.replace(
            made, checks=tuple((step, 1 / error) for step, error in made.checks)
        )


def test_variants_are_chosen_by_how_their_clips_end():
    found = search(_MisleadingLab(), keep=1)
    # SVG2 is stronger at equal density; planning costs it more than that.
    assert found.run().outcome.candidate.config.method == "draft"
    assert [label for label, _ in found.scout.screening][::2] == ["draft", "svg"]
    room = [left for _, left in found.scout.screening]
    assert room == sorted(room, reverse=True)


class _VariedLab(FakeLab):
    """Each method has a variant with less error than its defaults."""

    def observe(self, attention, scene):
        super().observe(attention, scene)
        found = attention.lookers[0].found
        found[:] = [dataclasses.replace(e, error=e.error / (1 + (":" in e.variant))) for e in found]


def test_kept_variants_are_of_different_methods():
    scout = search(_VariedLab(), keep=3).scout
    kept = [variant.method for variant in scout.learn()]
    assert len(scout.screening) > 3
    assert sorted(kept) == ["draft", "svg", "svg2"]


class _UnevenLab(FakeLab):
    """One scene flatters a variant, the other shows what it is worth."""

    def trial(self, config, scene, doomed=None):
        made = super().trial(config, scene)
        change = {0: 3.0, 1: -6.0}[scene.seed] if config.method == "svg" else 0.0
        return dataclasses.replace(made, scores=Scores(made.scores.psnr + change, 0.9))


def test_variants_near_the_best_are_screened_on_all_clips():
    found = search(_UnevenLab(), keep=1)
    assert found.run().outcome.candidate.config.method == "draft"
    assert found.scout.screening[0][0] == "draft"


def test_variants_far_from_the_best_are_screened_on_one_clip():
    lab = FakeLab()
    scout = search(lab).scout
    with patch.object(tuning_scout, "SCREEN_CLOSE", 0.5):
        scout.learn()
    screened = [entry for entry in lab.log if entry.startswith("trial")]
    assert len(screened) > len(scout.screening)
    assert sum(entry.endswith(" 1") for entry in screened) < len(scout.screening)


def test_settings_are_compared_by_what_all_clips_tell_of_their_times():
    lucky, other = (
        Outcome(Candidate(name, SparseConfig(method="draft")), True, Scores(30, 0.9), seconds, 2)
        for name, seconds in (("lucky", 4.0), ("other", 5.0))
    )
    known = {"lucky": 7.0, "other": 6.0}
    best = Best(10.0, lambda candidate: known.get(candidate.label))
    for outcome in (other, lucky):
        best.offer(outcome)
    assert (best.outcome, best.seconds) == (other, 6.0)
    # Where nothing predicts, as with step caches, the clips' own times decide.
    known.clear()
    best.offer(lucky)
    assert (best.outcome, best.seconds) == (lucky, 4.0)


def test_budgets_by_layer_win_where_they_are_better():
    plain = search(FakeLab(), allocate=False).run()
    found = search(FakeLab()).run()
    assert found.outcome.candidate.config.bands
    assert found.seconds < plain.seconds


def test_a_cache_wins_where_it_is_better_alone():
    best = search(
        FakeLab(cache_psnr=40.0), target=Target(min_psnr=38), caches=("first_block",)
    ).run()
    assert best.outcome.candidate.config.method == "dense"
    assert best.outcome.candidate.config.cache.name == "first_block"


def test_a_cache_joins_the_best_sparse_settings():
    best = search(FakeLab(cache_psnr=40.0), caches=("first_block", "taylorseer")).run()
    config = best.outcome.candidate.config
    assert config.cache is not None
    assert config.method != "dense"


class _QuickCacheLab(FakeLab):
    """A step cache halves the time."""

    def trial(self, config, scene, *given):
        made = super().trial(config, scene, *given)
        if made.seconds is None or config.cache is None:
            return made
        return dataclasses.replace(made, seconds=made.seconds * 0.5 / 0.9)


def test_a_cache_that_beats_sparsity_alone_is_tried_on_it_too():
    best = search(_QuickCacheLab(cache_psnr=40.0), caches=("first_block",)).run()
    config = best.outcome.candidate.config
    assert config.cache is not None
    assert config.method != "dense"
    assert best.seconds < 0.5 * DENSE_SECONDS


def test_eight_bits_join_where_they_keep_the_target():
    plain = search(FakeLab()).run()
    found = search(FakeLab(), eight_bit=True).run()
    assert found.outcome.candidate.config.precision == "8bit-sparse"
    assert found.seconds < plain.seconds


def test_an_unreachable_target_leaves_dense_and_the_nearest():
    found = search(FakeLab(), target=Target(min_psnr=60))
    assert found.run().outcome is None
    assert found.best.seconds == DENSE_SECONDS
    assert max(o.scores.psnr for o in found.outcomes if o.scores) > 25


def test_clips_that_cannot_reach_the_target_are_given_up_early():
    found = search(FakeLab(), target=Target(min_psnr=33))
    found.run()
    given_up = [o for o in found.outcomes if o.stopped and o.stopped.startswith("given up")]
    assert given_up
    assert not any(o.reaches for o in given_up)


def test_time_limit_begins_no_further_arm():
    lab, time = FakeLab(), iter(range(1000))
    found = search(lab, seconds=2.5)
    found.now = lambda: float(next(time))
    found.run()
    assert any("time limit" in why for why in found.skipped.values())
    assert len({o.candidate.label.split(", density")[0] for o in found.outcomes}) <= 3


@pytest.mark.parametrize("limit", [55.0, 65.0, 105.0])
def test_time_limit_begins_no_further_candidate(limit):
    lab, begun = FakeLab(), []
    found = search(lab, seconds=limit, allocate=False)
    found.now = lambda: 10.0 * sum(entry.startswith("trial") for entry in lab.log)
    probe = found.probe

    def noted(candidate):
        begun.append(found.now())
        return probe(candidate)

    found.probe = noted
    found.run()
    # One is always begun: what was learnt before would be for nothing.
    assert begun
    assert max(begun[1:], default=0.0) <= limit


def test_held_out_clips_demand_safer_settings():
    found = search(FakeLab(gap=-1.5), allocate=False)
    found.run()
    held_out = (Scene("c", 100), Scene("d", 101))
    validator = Validator(found.lab, found.journal, held_out, found.settings.target, found.speed)
    done = choose(found, validator)
    assert not done[0].meets
    assert done[-1].meets
    assert done[-1].scores.psnr > done[0].scores.psnr
    assert done[-1].speedup > 1
    assert done[-1].predicted_speedup == pytest.approx(done[-1].speedup, rel=0.1)


def test_resumed_search_generates_nothing_twice(tmp_path):
    first = FakeLab()
    whole = search(first, tmp_path / "j", caches=("first_block",)).run()
    second = FakeLab()
    again = search(second, tmp_path / "j", caches=("first_block",)).run()
    assert second.log == []
    assert again.outcome.candidate.key == whole.outcome.candidate.key
    assert again.seconds == whole.seconds


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_tune as t
from fake_lab import FakeLab

class Dying(FakeLab):
    def trial(self, *given):
        if sum(entry.startswith("trial") for entry in self.log) == {after}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().trial(*given)

t.search(Dying(), Path({folder!r}), caches=("first_block",)).run()
"""


@pytest.mark.parametrize("after", [1, 5])
def test_killed_search_goes_on_to_the_same_result(tmp_path, after):
    whole = search(FakeLab(), tmp_path / "whole", caches=("first_block",)).run()
    folder = tmp_path / "killed"
    code = KILLED.format(here=str(Path(__file__).parent), after=after, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with (folder / "journal.jsonl").open("a") as file:
        file.write('{"key": "torn off by the ki')
    lab = FakeLab()
    resumed = search(lab, folder, caches=("first_block",)).run()
    assert resumed.outcome.candidate.key == whole.outcome.candidate.key
    assert resumed.seconds == whole.seconds
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    original = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines()
    assert lines == [json.loads(line) for line in original]
    assert sum(entry.startswith("trial") for entry in lab.log) < len(lines)


def test_journal_of_another_search_is_refused(tmp_path):
    Journal(tmp_path, {"target": 28, "model": "tiny"})
    with pytest.raises(UsageError, match="holds a search with another target; choose another"):
        Journal(tmp_path, {"target": 30, "model": "tiny"})


def test_another_floor_is_measured_anew(tmp_path):
    class NoFloor(FakeLab):
        def floor(self, scene):
            return None

    def floor(lab):
        journal = Journal(tmp_path, {})
        return Validator(lab, journal, HELD_OUT, Target(min_psnr=1), SpeedModel(1, 1, ())).floor()

    assert floor(NoFloor(floor_name="none")) is None
    assert floor(FakeLab()) == 45


def test_held_out_clips_of_another_split_are_made_anew(tmp_path):
    def labs_log(scenes):
        lab = FakeLab()
        draft = Candidate("x", SparseConfig(method="draft", parameters={"density": 0.3}))
        journal = Journal(tmp_path, {})
        Validator(lab, journal, scenes, Target(min_psnr=1), SpeedModel(1, 1, ())).of(draft)
        return lab.log

    assert labs_log(HELD_OUT[:2]) == [
        "dense 100",
        "trial draft 100",
        "dense 101",
        "trial draft 101",
    ]
    assert labs_log(HELD_OUT[1:]) == ["dense 102", "trial draft 102"]


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_a_line_cut_anywhere_is_made_again(tmp_path, cut):
    Journal(tmp_path, {}).once("a", lambda: 1)
    file = tmp_path / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    journal = Journal(tmp_path, {})
    assert not journal.has("a")
    journal.once("b", lambda: 2)
    again = Journal(tmp_path, {})
    assert again.has("b")
    file.write_bytes(b'{"hea')
    assert not Journal(tmp_path, {}).has("b")


def test_damaged_journal_names_the_line(tmp_path):
    journal = Journal(tmp_path, {})
    journal.once("a", lambda: 1)
    journal.once("b", lambda: 2)
    file = tmp_path / "journal.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{", lines[2]]) + "\n")
    with pytest.raises(UsageError, match="damaged in line 2"):
        Journal(tmp_path, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "say what quality is needed"),
        ({"min_psnr": 200}, r"min_psnr=200 must lie in \(0, 100\)"),
        ({"min_ssim": 0}, "min_ssim=0"),
        ({"max_lpips": -1}, "max_lpips=-1"),
    ],
)
def test_targets_out_of_range_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        Target(**given)


def test_lpips_bound_without_lpips_is_refused():
    from vidsparse.tuning.target import Scores

    with pytest.raises(UsageError, match="LPIPS, which is unavailable"):
        Target(max_lpips=0.1).slack(Scores(30, 0.9))


def test_preset_is_measured_against_its_own_target():
    from vidsparse.config import SparseConfig
    from vidsparse.tuning.measure import measure_preset

    settings = {"method": "draft", "parameters": {"density": 0.3}, "dense_steps": 0}
    facts = {"device": "d", "dtype": "float32", "clips": 1, "psnr": 30, "ssim": 0.9, "speedup": 2}
    for psnr, meets in ((20.0, True), (40.0, False)):
        config = SparseConfig(**settings, measured={**facts, "target": {"min_psnr": psnr}})
        found = measure_preset(FakeLab(), config, SCENES, label="x")
        assert found.as_dict()["meets"] is meets
        assert ("meets" if meets else "misses") in found.line()
    unknown = measure_preset(FakeLab(), SparseConfig(**settings), SCENES, label="x")
    assert unknown.as_dict()["meets"] is None


FACTS = {"device": "a device", "dtype": "float32", "steps": 20, "versions": {"torch": "2"}}
HELD_OUT = (Scene("c", 100), Scene("d", 101), Scene("e", 102))


def report(lab, **given):
    found = search(lab, **given)
    found.run()
    return finish(found, HELD_OUT, ModelId(transformers={}), FACTS, defaults=True)


def test_report_is_a_preset_with_its_evidence(tmp_path):
    made = report(FakeLab())
    made.preset.save(tmp_path / "preset.toml")
    preset = SparseConfig.load(tmp_path / "preset.toml")
    assert preset.status == "measured"
    assert preset.measured.psnr >= 27
    assert preset.measured.floor_psnr == 45
    assert preset.measured.target == {"min_psnr": 27}
    assert preset.measured.clips == 3
    assert preset.measured.speedup == pytest.approx(preset.measured.predicted_speedup, rel=0.1)
    assert "Tuned for PSNR >= 27 dB" in made.lines()[0]


def test_tuned_preset_is_compared_with_defaults_at_equal_time():
    made = report(FakeLab())
    assert {row.candidate.config.method for row in made.defaults} == set(METHODS)
    for row in made.defaults:
        assert row.speedup == pytest.approx(made.tuned.speedup, rel=EQUAL_TIME)
    gains = [row["tuned_gain_db"]["low"] for row in made.as_dict()["defaults_at_equal_time"]]
    assert min(gains) > 0


class Unpredicted(FakeLab):
    """Clips of SVG take more than its timed steps tell."""

    def trial(self, config, scene, *given):
        made = super().trial(config, scene, *given)
        if made.seconds is None or config.method != "svg":
            return made
        return dataclasses.replace(made, seconds=1.15 * made.seconds)


def test_defaults_that_take_another_time_than_predicted_are_run_again():
    made = report(Unpredicted())
    (svg,) = (row for row in made.defaults if row.candidate.config.method == "svg")
    assert svg.speedup == pytest.approx(made.tuned.speedup, rel=EQUAL_TIME)
    assert svg.predicted_speedup == pytest.approx(1.15 * svg.speedup, rel=0.01)


class _SlowingLab(FakeLab):
    """The machine slows down with every clip."""

    def trial(self, config, scene, *given):
        made = super().trial(config, scene, *given)
        drift = 1 + 0.003 * sum(entry.startswith("trial") for entry in self.log)
        return dataclasses.replace(made, seconds=made.seconds and made.seconds * drift)


def test_a_machine_that_slows_down_does_not_change_what_is_equal():
    steady, slowing = report(FakeLab()), report(_SlowingLab())
    assert slowing.tuned.candidate.key == steady.tuned.candidate.key
    for row, drifted in zip(steady.defaults, slowing.defaults, strict=True):
        assert drifted.speedup == pytest.approx(slowing.tuned.speedup, rel=EQUAL_TIME)
        # Each clip is 0.3 % slower than the one before: that much remains.
        taken = [seconds_of(found.candidate.config) for found in (row, drifted)]
        assert taken[1] == pytest.approx(taken[0], rel=EQUAL_TIME + 0.003)


def test_preset_is_handed_over_before_the_defaults_run():
    found = search(FakeLab())
    found.run()
    ran = []
    finish(
        found,
        HELD_OUT,
        ModelId(transformers={}),
        FACTS,
        defaults=True,
        on_preset=lambda preset: ran.append((preset.status, len(found.lab.log))),
    )
    ((status, results),) = ran
    assert status == "measured"
    assert results < len(found.lab.log)


def test_a_cached_preset_is_predicted_from_the_clips_tuned_on():
    made = report(FakeLab(cache_psnr=40.0), caches=("first_block",))
    assert made.preset.cache is not None
    assert made.preset.measured.predicted_speedup == pytest.approx(made.tuned.speedup, rel=0.01)


def test_quality_without_speed_is_told_apart_from_a_miss():
    found = search(FakeLab())
    found.run()
    scenes = (Scene("c", 100),)
    slow = Candidate("slow", SparseConfig(method="svg2", parameters={"density": 1.0}))
    validator = Validator(found.lab, Journal(None, {}), scenes, Target(min_psnr=20), found.speed)
    row = validator.of(slow)
    assert row.reaches
    assert not row.meets
    assert "is no faster than dense, but meets the target" in row.line()


class SlowWhenHeldOut(FakeLab):
    """Draft, the fastest on the clips tuned on, is slow on the held-out ones."""

    def trial(self, config, scene, *given):
        made = super().trial(config, scene, *given)
        if made.seconds is None or config.method != "draft" or scene.seed < 100:
            return made
        return dataclasses.replace(made, seconds=5 * made.seconds)


class _BrokenLab(FakeLab):
    """The second held-out clip cannot be made at small densities."""

    least = 0.0

    def trial(self, config, scene, *given):
        if scene == HELD_OUT[1] and config.build()[0].density <= self.least:
            raise UsageError("the clip holds NaN")
        return super().trial(config, scene, *given)


def test_settings_that_cannot_make_a_held_out_clip_are_a_miss(tmp_path):
    fastest = report(FakeLab(), allocate=False).preset
    lab = _BrokenLab()
    lab.least = fastest.parameters["density"]
    for _ in range(2):
        made = report(lab, allocate=False, folder=tmp_path)
        assert made.preset.status == "measured"
        assert made.preset.parameters["density"] > lab.least
        assert "on a held-out clip: the clip holds NaN" in made.skipped.values()


def test_nothing_that_makes_held_out_clips_leaves_dense_with_the_reason():
    lab = _BrokenLab()
    lab.least = 1.0
    made = report(lab, allocate=False)
    assert made.preset.method == "dense"
    assert "(skipped on a held-out clip: the clip holds NaN)" in made.lines()[0]


def test_a_method_that_cannot_be_timed_is_skipped():
    class Lab(FakeLab):
        refused = ("draft",)

        def short(self, config, steps, scene):
            if config is not None and config.method in self.refused:
                raise UsageError("cannot run here")
            return super().short(config, steps, scene)

    found = search(Lab())
    assert found.run().outcome.candidate.config.method == "svg2"
    assert found.skipped["draft"] == "cannot run here"
    with (
        patch.object(Lab, "refused", METHODS),
        pytest.raises(UsageError, match=r"no sparse method can run .* cannot run here"),
    ):
        search(Lab()).run()


def test_settings_that_the_method_refuses_are_not_proposed():
    def at(density):
        parameters = {"density": density, "heads": "adaptive"}
        return Candidate("adaspa", SparseConfig(method="adaspa", parameters=parameters))

    assert denser(at(0.3), 1.2).density == pytest.approx(0.36)
    assert denser(at(0.6), 1.2) is None


def test_densities_at_their_cap_are_not_raised():
    def at(density):
        return Candidate("x", SparseConfig(method="svg2", parameters={"density": density}))

    assert denser(at(0.9), 1.2).density == 0.95
    assert denser(at(0.95), 1.2) is None
    assert denser(at(0.99), 1.2) is None


def test_no_settings_are_validated_twice():
    found = search(SlowWhenHeldOut(), target=Target(min_psnr=20), allocate=False)
    found.run()
    validator = Validator(found.lab, found.journal, HELD_OUT, found.settings.target, found.speed)
    done = choose(found, validator)
    assert done[0].reaches
    assert not done[0].meets
    keys = [row.candidate.key for row in done]
    assert len(set(keys)) == len(keys) > 1


def test_verdict_on_settings_that_held_out_clips_rejected_says_what_those_gave():
    made = report(FakeLab(gap=-30.0))
    assert made.preset.method == "dense"
    near = max(made.validations, key=lambda row: row.scores.psnr)
    assert (
        f"held-out clips: {near.candidate.label} misses the target: {near.scores}"
        in (made.lines()[0])
    )


class _WorseningLab(FakeLab):
    """Each further setting on held-out clips is worse."""

    def trial(self, config, scene, *given):
        made = super().trial(config, scene, *given)
        if scene.seed < 100:
            return made
        self.held_out = getattr(self, "held_out", 0) + 1
        return dataclasses.replace(made, scores=Scores(27.0 - self.held_out, 0.5))


def test_nearest_on_held_out_clips_is_not_the_last():
    made = report(_WorseningLab(), allocate=False)
    scores = [row.scores.psnr for row in made.validations]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) > 1
    assert made.validations[0].line() in made.lines()[0]


def test_nearest_is_so_by_the_bound_that_was_asked_for():
    def outcome(label, psnr, lpips):
        return Outcome(Candidate(label, SparseConfig()), False, Scores(psnr, 0.9, lpips), 5.0, 2)

    both = outcome("higher PSNR", 30, 0.5), outcome("less LPIPS", 29, 0.1001)
    nearest = tuning_report._nearest(both, Target(max_lpips=0.1), 10.0)
    assert nearest.candidate.label == "less LPIPS"


def test_unreachable_target_says_the_best_that_is_reachable_and_its_cost():
    made = report(FakeLab(), target=Target(min_psnr=60))
    assert made.preset.method == "dense"
    assert made.preset.measured is None
    (verdict,) = made.lines()
    nearest = max(o.scores.psnr for o in made.outcomes if o.scores)
    assert "reaches PSNR >= 60 dB: don't sparsify. The nearest is" in verdict
    assert f"{nearest:.2f} dB" in verdict
    assert re.search(r"at \d\.\d\dx", verdict)
    json.dumps(made.as_dict(), allow_nan=False)


class _ShortLab(FakeLab):
    """A clip of so few frames that SVG's first frame and own blocks are three eighths of it."""

    layout = VideoLayout(4, 12, 16)

    def observe(self, attention, scene):
        (looker,) = attention.lookers
        make = torch.Generator().manual_seed(0)
        shape = (4, 1, 2, self.layout.num_tokens, 32)
        q, k, v, out = torch.randn(shape, generator=make).unbind(0)
        for step, sigma in enumerate(SIGMAS):
            site = CallSite("transformer", 0, LAYERS, step, STEPS, sigma, 0, 0)
            attention.recorder.record_dense("observed", site)
            if step in (5, 15):
                looker.look(Look(q, k, v, out, self.layout, site))

    def short(self, config, steps, scene):
        self.refuse(config)
        return super().short(config, steps, scene)

    def trial(self, config, scene, doomed=never):
        self.refuse(config)
        return super().trial(config, scene, doomed)

    def refuse(self, config):
        if config is not None and config.method == "svg" and config.build()[0].density < 0.375:
            raise UsageError("the first frame and each block's own keys always stay")


def test_a_method_that_refuses_small_densities_is_tuned_at_larger_ones():
    lab, said = _ShortLab(), []
    chosen = TuneSettings(Target(min_psnr=25), SCENES, ("svg",), (), allocate=False)
    made = Search(lab, Journal(None, {}), chosen, say=said.append)
    best = made.run()
    assert best.outcome.candidate.config.method == "svg"
    assert best.outcome.candidate.density >= 0.375
    assert set(made.scout.ranked_at.values()) == {(0.4, 0.6)}
    assert any("at densities 0.4 and 0.6, less is refused" in line for line in said)


def test_a_size_that_nothing_can_run_at_is_refused_with_the_reason():
    class TinyLab(_ShortLab):
        layout = VideoLayout(2, 4, 4)

    chosen = TuneSettings(Target(min_psnr=25), SCENES, ("svg",), ())
    with pytest.raises(UsageError, match="no sparse method can run on this model at this size: "):
        Search(TinyLab(), Journal(None, {}), chosen).run()


def test_variants_of_a_method_are_compared_at_densities_that_all_take():
    found = {"a": {0.2: 0.4, 0.4: 0.2}, "a:x=1": {0.4: 0.3, 0.6: 0.01}, "b": {0.6: 0.1, 0.7: 0.1}}
    errors = tuning_scout._comparable(found, {"a": "a", "a:x=1": "a", "b": "b"})
    assert errors == pytest.approx({"a": 0.2, "a:x=1": 0.3, "b": 0.1})
