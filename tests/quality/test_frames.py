import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure as tm_ms_ssim,
)
from torchmetrics.functional.image import peak_signal_noise_ratio as tm_psnr
from torchmetrics.functional.image import structural_similarity_index_measure as tm_ssim

from vidsparse.clips import ClipFacts, Scene
from vidsparse.quality import (
    PSNR_OF_EQUAL_FRAMES,
    Quality,
    mean_psnr,
    ms_ssim_per_frame,
    pooled_psnr,
    psnr_per_frame,
    ssim_per_frame,
)
from vidsparse.quality.frames import ms_ssim_scales
from vidsparse.scores import Comparison, Record


def noisy(size: tuple[int, int] = (40, 33), frames: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(frames, 3, *size, generator=generator)
    noise = torch.randn(frames, 3, *size, generator=generator) * 0.05
    return (reference + noise).clamp(0, 1), reference


def test_psnr_of_a_known_error() -> None:
    reference = torch.full((2, 3, 8, 8), 0.5)
    video = torch.stack([reference[0] + 0.1, reference[1] + 0.01])
    assert psnr_per_frame(video, reference).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_psnr_of_added_noise_is_that_of_its_variance() -> None:
    generator = torch.Generator().manual_seed(1)
    reference = torch.full((3, 3, 128, 128), 0.5)
    video = reference + torch.randn(reference.shape, generator=generator) * 0.1
    assert psnr_per_frame(video, reference).tolist() == pytest.approx([20.0] * 3, abs=0.1)


def test_metrics_agree_with_torchmetrics() -> None:
    video, reference = noisy((180, 176), 3)
    options = {"data_range": 1.0, "reduction": "none"}
    expected = tm_psnr(video, reference, dim=(1, 2, 3), **options)
    assert torch.allclose(psnr_per_frame(video, reference).float(), expected, atol=1e-4)
    expected = tm_ssim(video, reference, **options)
    assert torch.allclose(ssim_per_frame(video, reference), expected, atol=1e-4)
    expected = tm_ms_ssim(video, reference, normalize="relu", **options)
    assert torch.allclose(ms_ssim_per_frame(video, reference), expected, atol=1e-4)


def test_metrics_agree_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    video, reference = noisy()
    pairs = [
        (a.permute(1, 2, 0).double().numpy(), b.permute(1, 2, 0).double().numpy())
        for a, b in zip(video, reference, strict=True)
    ]
    psnr = [metrics.peak_signal_noise_ratio(b, a, data_range=1) for a, b in pairs]
    assert psnr_per_frame(video, reference).tolist() == pytest.approx(psnr, abs=1e-4)
    ssim = [
        metrics.structural_similarity(
            b, a, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in pairs
    ]  # fmt: skip
    found = ssim_per_frame(video, reference, border=False)
    assert found.tolist() == pytest.approx(ssim, abs=1e-4)


def test_equal_frames_are_perfect() -> None:
    _, reference = noisy((180, 176), 2)
    assert psnr_per_frame(reference, reference).tolist() == [math.inf] * 2
    assert ssim_per_frame(reference, reference).tolist() == pytest.approx([1.0] * 2)
    assert ms_ssim_per_frame(reference, reference).tolist() == pytest.approx([1.0] * 2)


def test_a_shift_by_one_pixel_costs_more_at_fine_scales() -> None:
    x = np.linspace(0, 40 * np.pi, 176)
    row = torch.tensor(0.5 + 0.4 * np.sin(x)).float()
    reference = row.view(1, 1, 1, -1).expand(1, 3, 176, 176).contiguous()
    shifted = reference.roll(1, dims=3)
    # Of a sine of amplitude a, shifted by the phase p: the error is 4 a^2 sin^2(p / 2) / 2.
    phase = x[1] - x[0]
    error = 2 * 0.4**2 * math.sin(phase / 2) ** 2
    found = float(psnr_per_frame(shifted, reference)[0])
    assert found == pytest.approx(-10 * math.log10(error), abs=0.1)
    assert 0 < float(ssim_per_frame(shifted, reference)[0]) < 0.9


def test_ssim_falls_with_noise() -> None:
    video, reference = noisy()
    worse = (reference + (video - reference) * 3).clamp(0, 1)
    for metric in (ssim_per_frame, ms_ssim_per_frame):
        mild, strong = metric(video, reference), metric(worse, reference)
        assert (strong < mild).all()
        assert (mild < 1).all()


def test_ms_ssim_uses_the_scales_that_fit() -> None:
    assert [ms_ssim_scales(size, 999) for size in (10, 21, 22, 44, 99, 128, 175, 176)] == [
        0, 1, 2, 3, 4, 4, 4, 5,
    ]  # fmt: skip
    video, reference = noisy((20, 20))
    assert torch.allclose(
        ms_ssim_per_frame(video, reference), ssim_per_frame(video, reference), atol=1e-5
    )
    with pytest.raises(ValueError, match="needs frames of 11 pixels"):
        ms_ssim_per_frame(*noisy((10, 20)))


def test_single_frame_keeps_its_axis() -> None:
    frame = torch.rand(1, 3, 16, 16)
    assert ssim_per_frame(frame, frame).shape == (1,)
    assert ms_ssim_per_frame(frame, frame).shape == (1,)


def test_one_equal_frame_does_not_make_the_mean_infinite() -> None:
    assert mean_psnr((math.inf, 20.0)) == (PSNR_OF_EQUAL_FRAMES + 20.0) / 2
    assert math.isinf(mean_psnr((math.inf, math.inf)))


def test_no_frame_counts_more_than_an_equal_one() -> None:
    reference = torch.zeros(2, 3, 720, 1280)
    video = reference.clone()
    video[:, 0, 0, 0] = 1 / 255
    nearly = psnr_per_frame(video, reference).tolist()
    assert min(nearly) > PSNR_OF_EQUAL_FRAMES
    assert mean_psnr(nearly) == mean_psnr([math.inf, nearly[0]]) == PSNR_OF_EQUAL_FRAMES


def test_row_and_interval_take_the_same_psnr() -> None:
    clips = [Quality(psnr=(112.5, 112.5), ssim=(1.0, 1.0), lpips=None, lpips_note="none")] * 2
    records = [Record("dense", "", [ClipFacts(1, 1)] * 2)]
    records.append(Record("m", "", [ClipFacts(1, 1, quality) for quality in clips]))
    scenes = (Scene("a", 0), Scene("b", 1))
    (row,) = Comparison(scenes, records[0], (records[1],)).rows()
    assert row["psnr"] == row["intervals"]["psnr"]["mean"] == PSNR_OF_EQUAL_FRAMES
    assert not row["identical"]


def test_pooled_psnr_is_that_of_the_pooled_error() -> None:
    video, reference = noisy()
    video[0] = reference[0]
    pooled = -10 * torch.log10((video.double() - reference.double()).square().mean())
    frames = psnr_per_frame(video, reference).tolist()
    assert pooled_psnr(frames) == pytest.approx(float(pooled), abs=1e-6)
    assert pooled_psnr(frames) < mean_psnr(frames)
    assert math.isinf(pooled_psnr([math.inf]))


@pytest.mark.parametrize("metric", [psnr_per_frame, ssim_per_frame, ms_ssim_per_frame])
def test_videos_without_frames_are_refused(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="at least one frame"):
        metric(torch.zeros(0, 3, 16, 16), torch.zeros(0, 3, 16, 16))
