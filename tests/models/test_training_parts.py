import pytest
import torch
from fast_vae import speed_up
from optim import Muon, orthogonalise
from parts import build_tokenizer, build_vae, decode_clip, encode_moments, whole_clip
from scenes import render, sample_scenes


@pytest.fixture
def video():
    return torch.rand(1, 3, 9, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("fast", [False, True])
def test_whole_clip_equals_the_chunked_vae(video, fast):
    torch.manual_seed(0)
    vae = build_vae(8).eval()
    for p in vae.parameters():
        # Residual branches start at zero and would hide a difference.
        torch.nn.init.normal_(p, std=0.1)
    with torch.no_grad():
        mean = vae.encode(video).latent_dist.mean
        out = vae.decode(mean).sample
        whole_clip(vae)
        if fast:
            speed_up(vae)
        torch.testing.assert_close(encode_moments(vae, video)[0], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(decode_clip(vae, mean).clamp(-1, 1), out, rtol=1e-4, atol=1e-5)
    assert mean.shape == (1, 32, 3, 2, 4)


def test_tokenizer_drops_unknown_words():
    tokenizer = build_tokenizer()
    plain = tokenizer("a small red circle moves right").input_ids
    assert tokenizer("A very small, RED circle moves rightwards right!").input_ids == plain
    assert tokenizer("quelque chose").input_ids == tokenizer("").input_ids == [1]
    assert tokenizer.unk_token_id not in plain


def test_orthogonalised_update_has_singular_values_near_one():
    update = torch.randn(2, 24, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(update))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.4


def test_muon_treats_a_kernel_as_its_matrix():
    grad = torch.randn(8, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    kernel = torch.nn.Parameter(torch.zeros(8, 4, 3, 3, 3))
    matrix = torch.nn.Parameter(torch.zeros(8, 108))
    kernel.grad, matrix.grad = grad, grad.flatten(1)
    for p in (kernel, matrix):
        Muon([p], lr=0.1).step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())
    assert float(matrix.detach().abs().max()) > 0


def test_a_window_is_a_part_of_the_whole_picture():
    scenes, _ = sample_scenes(3, torch.Generator().manual_seed(4))
    size = {"frames": 9, "height": 32, "width": 48}
    window = (slice(2, 7), slice(8, 24), slice(0, 32))
    part = render(scenes, **size, window=window)
    torch.testing.assert_close(part, render(scenes, **size)[:, :, 2:7, 8:24, :32])


def test_vae_starts_near_the_colours_of_its_blocks():
    torch.manual_seed(0)
    vae = whole_clip(build_vae(8))
    optimiser = torch.optim.AdamW(vae.parameters(), lr=5e-3)
    colours = torch.rand(8, 3, 1, 1, 1, generator=torch.Generator().manual_seed(1)) * 2 - 1
    video = colours.expand(8, 3, 5, 16, 16)
    for _ in range(60):
        loss = (decode_clip(vae, encode_moments(vae, video)[0]) - video).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1 * float(video.pow(2).mean())
