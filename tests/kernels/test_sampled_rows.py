import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.sampled_rows import attend_sampled_rows

SHAPES = [(1, 1, 1, 100, 16), (2, 3, 5, 63, 24), (1, 2, 64, 300, 64), (1, 1, 70, 2100, 32)]


def case(generator: torch.Generator, B: int, H: int, R: int, S: int, D: int) -> list[torch.Tensor]:
    device = generator.device
    q = torch.randn(B, H, R, D, generator=generator, device=device)
    k, v = (
        torch.randn(B, S, H, D, generator=generator, device=device).transpose(1, 2) for _ in "kv"
    )
    keep = torch.rand(2, R, S, generator=generator, device=device) < 0.3
    keep[:, :, S // 2] = True
    return [q, k, v, keep]


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    scores = q.double() @ k.double().mT * q.shape[-1] ** -0.5
    masked = (scores, *(scores.masked_fill(~mask, -torch.inf) for mask in keep))
    return torch.stack([torch.softmax(x, -1) @ v.double() for x in masked]).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_attend_under_each_mask(generator: torch.Generator, shape: tuple[int, ...]) -> None:
    tensors = case(generator, *shape)
    got = attend_sampled_rows(*tensors)
    torch.testing.assert_close(got, exact(*tensors), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_triton_rows_attend_the_same(generator: torch.Generator, shape: tuple[int, ...]) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels.triton_sampled_rows import attend_sampled_rows_triton

    q, k, v, keep = case(generator, *shape)
    half = [x.half() for x in (q, k, v)]
    got = attend_sampled_rows_triton(*half, keep)
    torch.testing.assert_close(got, exact(*half, keep), atol=2e-3, rtol=2e-3)
    full = torch.ones_like(keep)
    same = attend_sampled_rows_triton(*half, full)
    # One kernel makes all three from the same rounded weights, but the compiler lays each sum out
    # on its own, so float32 sums differ in order: too little to matter for any mask's error.
    torch.testing.assert_close(same, exact(*half, full), atol=2e-3, rtol=2e-3)
    for masked in same[1:]:
        torch.testing.assert_close(masked, same[0], atol=2e-6, rtol=1e-5)


def test_large_logits_give_no_nan(generator: torch.Generator) -> None:
    q, k, v, keep = case(generator, 1, 2, 8, 200, 16)
    assert bool(attend_sampled_rows(1e4 * q, k, v, keep).isfinite().all())


@pytest.mark.gpu
@pytest.mark.parametrize("D", [64, 128])
def test_rows_of_a_long_sequence(gpu_generator: torch.Generator, D: int) -> None:
    q, k, v, keep = case(gpu_generator, 1, 4, 64, 75600, D)
    low = [x.bfloat16() for x in (q, k, v)]
    torch.testing.assert_close(
        attend_sampled_rows(*low, keep), exact(*low, keep), atol=1e-3, rtol=2e-2
    )
