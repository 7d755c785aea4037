import pytest
import torch
from torch import Tensor

from vidsparse.quality import flicker_per_step, warped_error_per_step


def moving(frames: int = 4, *, speed: int = 3) -> Tensor:
    """A smooth random texture that moves to the right."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 12, 40, generator=generator)
    wide = torch.nn.functional.interpolate(noise, size=(64, 200), mode="bicubic").clamp(0, 1)
    start = 60
    parts = [wide[0, :, :, start - speed * t : start - speed * t + 96] for t in range(frames)]
    return torch.stack(parts)


def test_flicker_of_a_known_blink() -> None:
    reference = moving()
    video = reference.clone()
    video[1] += 0.25
    assert flicker_per_step(video, reference).tolist() == pytest.approx([0.25, 0.25, 0.0], abs=1e-6)


def test_a_constant_error_does_not_flicker() -> None:
    reference = moving()
    assert flicker_per_step(reference + 0.1, reference).tolist() == pytest.approx([0] * 3, abs=1e-6)


def test_warped_error_ignores_motion_and_sees_noise() -> None:
    reference = moving()
    generator = torch.Generator().manual_seed(1)
    video = reference + torch.randn(reference.shape, generator=generator) * 0.05
    mine, own = warped_error_per_step(video, reference)
    still = (reference[1:] - reference[:-1]).square().mean(dim=(1, 2, 3))
    assert (own < still / 20).all()
    # Noise of both frames adds up, less what interpolation between pixels averages away.
    excess = mine - own
    assert ((excess > 0.05**2) & (excess < 2.2 * 0.05**2)).all()


def test_warped_error_of_the_reference_is_its_own() -> None:
    mine, own = warped_error_per_step(moving(), moving())
    assert torch.equal(mine, own)


def test_a_cut_has_no_flow() -> None:
    generator = torch.Generator().manual_seed(0)
    cut = torch.stack([moving(1)[0], torch.rand(3, 64, 96, generator=generator)])
    mine, _ = warped_error_per_step(cut, cut)
    steady, _ = warped_error_per_step(moving(2), moving(2))
    assert torch.isnan(mine).all() or mine[0] > 20 * steady[0]


def test_a_single_frame_has_no_steps() -> None:
    assert flicker_per_step(moving(1), moving(1)).shape == (0,)
    assert warped_error_per_step(moving(1), moving(1))[0].shape == (0,)


def test_tiny_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="needs frames of 16 pixels"):
        warped_error_per_step(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
