import pytest
import torch
from fast_vae import speed_up
from optim import orthogonalise
from parts import build_tokenizer, build_vae, decode_clip, encode_moments, whole_clip


@pytest.fixture
def video():
    return torch.rand(1, 3, 9, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("fast", [False, True])
def test_whole_clip_equals_the_chunked_vae(video, fast):
    torch.manual_seed(0)
    vae = build_vae(8).eval()
    with torch.no_grad():
        mean = vae.encode(video).latent_dist.mean
        out = vae.decode(mean).sample
        whole_clip(vae)
        if fast:
            speed_up(vae, stacked=True, fused=True)
        torch.testing.assert_close(encode_moments(vae, video)[0], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(decode_clip(vae, mean).clamp(-1, 1), out, rtol=1e-4, atol=1e-5)
    assert mean.shape == (1, 8, 3, 4, 8)


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
