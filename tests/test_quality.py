import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from vidsparse import quality
from vidsparse.quality import (
    PSNR_OF_EQUAL_FRAMES,
    Lpips,
    MetricUnavailableError,
    compare_videos,
    load_lpips,
    mean_psnr,
    psnr_per_frame,
    ssim_per_frame,
)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(5, 3, 40, 33, generator=generator)
    noise = torch.randn(5, 3, 40, 33, generator=generator) * 0.05
    return (reference + noise).clamp(0, 1), reference


def test_psnr_of_a_known_error() -> None:
    reference = torch.full((2, 3, 8, 8), 0.5)
    video = torch.stack([reference[0] + 0.1, reference[1] + 0.01])
    assert psnr_per_frame(video, reference).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_psnr_agrees_with_torchmetrics_frame_by_frame(pair: tuple[Tensor, Tensor]) -> None:
    expected = peak_signal_noise_ratio(
        *pair, data_range=1.0, reduction="none", dim=(1, 2, 3)
    ).tolist()
    assert psnr_per_frame(*pair).tolist() == pytest.approx(expected, abs=1e-3)


def test_ssim_falls_with_noise_and_is_one_for_equal_frames(pair: tuple[Tensor, Tensor]) -> None:
    video, reference = pair
    worse = (reference + (video - reference) * 3).clamp(0, 1)
    noisy, noisier = ssim_per_frame(video, reference), ssim_per_frame(worse, reference)
    assert (noisier < noisy).all()
    assert (noisy < 1).all()
    assert ssim_per_frame(reference, reference).tolist() == pytest.approx([1.0] * 5)


def test_single_frame_keeps_its_axis() -> None:
    frame = torch.rand(1, 3, 16, 16)
    assert ssim_per_frame(frame, frame).shape == (1,)


def test_identical_videos_have_infinite_psnr(pair: tuple[Tensor, Tensor]) -> None:
    found = compare_videos(pair[1], pair[1], lpips="unavailable: here")
    assert found.identical
    assert math.isinf(found.mean_psnr)
    assert found.mean_ssim == pytest.approx(1.0)
    assert found.mean_lpips is None
    assert found.lpips_note == "unavailable: here"


def test_one_equal_frame_does_not_make_the_mean_infinite() -> None:
    assert mean_psnr((math.inf, 20.0)) == (PSNR_OF_EQUAL_FRAMES + 20.0) / 2
    assert math.isinf(mean_psnr((math.inf, math.inf)))


@pytest.mark.parametrize("shape", [(5, 3, 40, 32), (5, 1, 40, 33), (3, 40, 33)])
def test_wrong_shapes_are_refused(pair: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="videos must be"):
        compare_videos(torch.zeros(shape), pair[1], lpips="")


def test_lpips_without_backbone_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", _no_network)
    with pytest.raises(MetricUnavailableError, match="unavailable: get AlexNet's weights"):
        Lpips()
    assert load_lpips() == quality.NO_BACKBONE


def test_damaged_backbone_is_no_backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    quality.backbone_file().parent.mkdir()
    quality.backbone_file().write_bytes(b"not weights")
    note = load_lpips()
    assert isinstance(note, str)
    assert "damaged" in note


def test_lpips_feeds_signed_frames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: tuple[Tensor, Tensor]
) -> None:
    seen: list[Tensor] = []

    class Net(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "alex"

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            seen.extend((a, b))
            return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("lpips.LPIPS", Net)
    quality.backbone_file().parent.mkdir()
    quality.backbone_file().touch()
    video, reference = pair
    found = compare_videos(video, reference, lpips=Lpips())
    assert torch.allclose(seen[0], video * 2 - 1)
    assert torch.allclose(seen[1], reference * 2 - 1)
    expected = 2 * (video - reference).abs().mean(dim=(1, 2, 3))
    assert found.lpips == pytest.approx(expected.tolist(), abs=1e-6)


def _no_network(*_: object, **__: object) -> None:
    raise AssertionError("LPIPS must never download by itself")
