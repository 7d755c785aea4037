import pytest

from vidsparse.quality import Quality, judge

PROMPTS = ["a", "a", "b", "b"]


def clips(*psnr: float, ssim: float = 0.9, lpips: float | None = None) -> list[Quality]:
    distance = None if lpips is None else (lpips,)
    return [Quality(psnr=(value,), ssim=(ssim,), lpips=distance) for value in psnr]


def test_as_close_as_the_floor_is_indistinguishable() -> None:
    floor = clips(40, 35, 30, 38)
    found = judge(clips(39.9, 35.2, 29.9, 38), floor, [0.3] * 4, None, PROMPTS)
    assert found.name == "indistinguishable"
    assert found.position == pytest.approx(1.0)


def test_pairs_count_not_means() -> None:
    # The spread over clips is far larger than the steady gap of 2 dB.
    floor = clips(45, 35, 25, 15)
    found = judge(clips(43, 33, 23, 13), floor, [0.3] * 4, None, PROMPTS)
    assert found.name == "same content"


def test_few_clips_that_scatter_do_not_pass_as_the_floor() -> None:
    floor = clips(30, 30, 30, 30)
    found = judge(clips(34, 26, 34, 26), floor, None, [False] * 4, ["a", "b", "c", "d"])
    assert found.name == "same content"
    assert "-" in found.reason


def test_worse_structure_or_lpips_is_not_the_floor() -> None:
    floor = clips(30, 30, 30, 30, lpips=0.1)
    worse = clips(31, 31, 31, 31, ssim=0.8, lpips=0.1)
    assert judge(worse, floor, [0.3] * 4, None, PROMPTS).name == "same content"
    worse = clips(31, 31, 31, 31, lpips=0.2)
    assert judge(worse, floor, [0.3] * 4, None, PROMPTS).name == "same content"


def test_closer_to_a_stranger_than_to_the_floor_is_diverged() -> None:
    found = judge(clips(15, 15, 15, 15, ssim=0.5), clips(*[40.0] * 4), [0.4] * 4, None, PROMPTS)
    assert found.name == "diverged"
    assert found.position == pytest.approx(0.2)
    assert found.kept == 0


def test_the_judge_of_content_is_asked_where_there_is_one() -> None:
    # SSIM is 0.3 of the way from the stranger (0.4) to the floor (0.9).
    floor, far = clips(*[40.0] * 4), clips(*[15.0] * 4, ssim=0.55)
    assert judge(far, floor, [0.4] * 4, [False] * 4, PROMPTS).name == "same content"
    assert judge(far, floor, [0.4] * 4, None, PROMPTS).name == "diverged"
    lost = judge(far, floor, [0.4] * 4, [False, False, False, True], PROMPTS)
    assert lost.name == "diverged"
    assert "3 of 4 clips" in lost.reason


def test_another_clip_of_the_same_caption_is_not_the_same_content() -> None:
    floor, stranger = clips(*[40.0] * 4), clips(*[12.0] * 4, ssim=0.41)
    assert judge(stranger, floor, [0.4] * 4, [False] * 4, PROMPTS).name == "diverged"


def test_a_dense_clip_that_shows_nothing_cannot_vouch() -> None:
    floor, far = clips(*[40.0] * 4), clips(*[15.0] * 4, ssim=0.55)
    assert judge(far, floor, [0.4] * 4, [None] * 4, PROMPTS).name == "diverged"
    assert judge(far, floor, None, [None] * 4, PROMPTS).name == "undecided"
    assert judge(far, floor, None, [None, False, False, False], PROMPTS).kept == 1


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
