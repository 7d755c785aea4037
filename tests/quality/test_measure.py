import json
import math

import pytest
import torch
from torch import Tensor

from vidsparse.quality import Quality, compare_videos


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(5, 3, 40, 33, generator=generator)
    noise = torch.randn(5, 3, 40, 33, generator=generator) * 0.05
    return (reference + noise).clamp(0, 1), reference


def test_identical_videos_have_infinite_psnr(pair: tuple[Tensor, Tensor]) -> None:
    found = compare_videos(pair[1], pair[1], lpips="unavailable: here")
    assert found.identical
    assert math.isinf(found.mean_psnr)
    assert found.mean_ssim == pytest.approx(1.0)
    assert found.mean_lpips is None
    assert found.lpips_note == "unavailable: here"


@pytest.mark.parametrize("shape", [(5, 3, 40, 32), (5, 1, 40, 33), (3, 40, 33)])
def test_wrong_shapes_are_refused(pair: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="videos must be"):
        compare_videos(torch.zeros(shape), pair[1], lpips="")


def test_all_metrics_are_measured_at_once(pair: tuple[Tensor, Tensor]) -> None:
    found = compare_videos(*pair, lpips="unavailable: here")
    means = found.means()
    assert means["psnr"] == pytest.approx(26.5, abs=1)
    assert means["psnr_pooled"] == pytest.approx(means["psnr"], abs=0.1)
    assert 0 < means["ssim"] < 1
    assert found.ms_ssim_scales == 2
    assert means["flicker"] > 0.03
    assert len(found.warped_error) == 4
    assert means["lpips"] is means["lpips_vgg"] is None


def test_small_frames_and_single_frames_lack_what_cannot_be_measured() -> None:
    found = compare_videos(torch.rand(1, 3, 10, 10), torch.rand(1, 3, 10, 10), lpips="")
    means = found.means()
    assert means["ms_ssim"] is means["flicker"] is means["warped_error"] is None


def test_quality_survives_json(pair: tuple[Tensor, Tensor]) -> None:
    video, reference = pair
    video[1] = reference[1]
    found = compare_videos(video, reference, lpips="unavailable: here")
    assert Quality.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found
    cut = Quality(psnr=(1.0,), ssim=(1.0,), lpips=None, warped_error=(math.nan,))
    text = json.dumps(cut.as_dict(), allow_nan=False)
    assert math.isnan(Quality.from_dict(json.loads(text)).warped_error[0])


def test_excess_is_over_the_reference_and_skips_cuts() -> None:
    found = Quality((1.0,), (1.0,), None, warped_error=(0.3, math.nan, 0.1),
                    warped_error_reference=(0.1, math.nan, 0.1))  # fmt: skip
    assert found.excess_warped_error == pytest.approx(0.1)
