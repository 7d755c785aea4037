from dataclasses import replace

import pytest

from vidsparse.quality import Quality, judge

PROMPTS = ["a", "a", "b", "b"]


def clips(*psnr: float, ssim: float = 0.9, lpips: float | None = None) -> list[Quality]:
    distance = None if lpips is None else (lpips,)
    return [Quality(psnr=(value,), ssim=(ssim,), lpips=distance) for value in psnr]


def test_as_close_as_the_floor_is_indistinguishable() -> None:
    floor = clips(40, 35, 30, 38)
    found = judge(clips(39.95, 35.05, 29.95, 38), floor, [0.3] * 4, None, PROMPTS)
    assert found.name == "indistinguishable"
    assert found.position == pytest.approx(1.0)


def test_pairs_count_not_means() -> None:
    # The spread over clips is far larger than the steady gap of 2 dB.
    floor = clips(45, 35, 25, 15)
    found = judge(clips(43, 33, 23, 13), floor, [0.3] * 4, None, PROMPTS)
    assert found.name == "same content"


def test_few_clips_that_scatter_do_not_pass_as_the_floor() -> None:
    floor = clips(30, 30, 30, 30)
    found = judge(clips(34, 26, 34, 26), floor, [0.3] * 4, [False] * 4, ["a", "b", "c", "d"])
    assert found.name == "same content"
    assert "-" in found.reason


def test_worse_structure_or_lpips_is_not_the_floor() -> None:
    floor = clips(30, 30, 30, 30, lpips=0.1)
    worse = clips(31, 31, 31, 31, ssim=0.8, lpips=0.1)
    assert judge(worse, floor, [0.3] * 4, None, PROMPTS).name == "same content"
    worse = clips(31, 31, 31, 31, lpips=0.2)
    found = judge(worse, floor, [0.3] * 4, None, PROMPTS)
    assert found.name == "same content"
    # What decided is among the figures.
    assert "LPIPS at most +0.1000" in found.reason


def test_closer_to_a_stranger_than_to_the_floor_is_diverged() -> None:
    found = judge(clips(15, 15, 15, 15, ssim=0.5), clips(*[40.0] * 4), [0.4] * 4, None, PROMPTS)
    assert found.name == "diverged"
    assert found.position == pytest.approx(0.2)
    assert found.kept == 0


def test_the_judge_of_content_can_only_object() -> None:
    # SSIM is 0.6 of the way from the stranger (0.4) to the floor (0.9), and 0.02 of it.
    floor, near, stranger = (clips(*[15.0] * 4, ssim=value) for value in (0.9, 0.7, 0.41))
    near = [replace(clip, psnr=(14.0,)) for clip in near]
    assert judge(near, floor, [0.4] * 4, [False] * 4, PROMPTS).name == "same content"
    assert judge(stranger, floor, [0.4] * 4, [False] * 4, PROMPTS).name == "diverged"
    lost = judge(near, floor, [0.4] * 4, [False, False, False, True], PROMPTS)
    assert lost.name == "diverged"
    assert "3 of 4 clips keep their content by the content check and SSIM" in lost.reason


def test_one_clip_is_undecided_unless_it_lost_something() -> None:
    assert judge(clips(20), clips(40), None, [False], ["a"]).name == "undecided"
    assert judge(clips(20), clips(40), None, [True], ["a"]).name == "diverged"


def test_identical_needs_no_floor() -> None:
    found = judge(clips(float("inf")), None, None, None, ["a"])
    assert found.name == "indistinguishable"
    assert found.reason == "every frame is dense's"


def test_one_clip_without_a_judge_is_undecided() -> None:
    found = judge(clips(20), clips(40), None, None, ["a"])
    assert found.name == "undecided"
    assert "--seeds 2" in found.reason


def test_without_a_floor_nothing_but_equality_is_indistinguishable() -> None:
    found = judge(clips(60, 60, 60, 60, ssim=0.999), None, [0.4] * 4, None, PROMPTS)
    assert found.name == "same content"
    assert "no floor" in found.reason
