from typing import Any

import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.bit_masks import pack_bits, unpack_bits
from vidsparse.kernels.tile_drop import TileScales, drop_light_tiles


def inputs(N: int, generator: torch.Generator, *, gaps: bool) -> tuple[Any, ...]:
    device = generator.device

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    stats, bits = draw(2, 3, 5, N), pack_bits(draw(2, 3, 5, N) < 0.7)
    scales = TileScales(draw(2, 3, 5) + 0.5, draw(N) + 0.5, draw(2, 3, 5), gaps=gaps)
    threshold = -3.0 if gaps else 0.4
    return bits, -8 * stats if gaps else stats, draw(5, N) < 0.1, threshold, scales


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("N", [1, 9, 70])
def test_light_tiles_go_and_what_they_held_is_counted(
    N: int, gaps: bool, generator: torch.Generator
) -> None:
    bits, stats, forced, threshold, scales = inputs(N, generator, gaps=gaps)
    new, held = drop_light_tiles(bits, stats, forced, threshold, scales)
    before, after = unpack_bits(bits, N), unpack_bits(new, N)
    stats, kv = stats.double(), scales.kv.double()
    weight = stats if gaps else stats * scales.q[..., None] * kv
    holds = (2**stats * kv).clamp(max=1) if gaps else stats * scales.held[..., None]
    gone = before & (weight <= threshold) & ~forced
    assert torch.equal(after, before & ~gone)
    torch.testing.assert_close(held.double(), (holds * gone).sum(-1), rtol=1e-5, atol=1e-5)
    assert bool(gone.any()) or N == 1


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("N", [1, 9, 70])
def test_triton_equals_torch(
    N: int, gaps: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels import triton_tile_drop

    given = inputs(N, generator, gaps=gaps)
    moved = [x.cpu() if isinstance(x, torch.Tensor) else x for x in given[:4]]
    on_cpu = [x.cpu() for x in (given[4].q, given[4].kv, given[4].held)]
    expected = drop_light_tiles(*moved, TileScales(*on_cpu, gaps=gaps))
    # A row takes one round of its program, or several.
    for size in (64, 4):
        monkeypatch.setattr(triton_tile_drop, "_BYTES", size)
        got = triton_tile_drop.drop_light_tiles_triton(*given)
        assert torch.equal(got[0].cpu(), expected[0])
        torch.testing.assert_close(got[1].cpu(), expected[1], rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_nan_stays(generator: torch.Generator) -> None:
    bits, stats, forced, _, scales = inputs(9, generator, gaps=False)
    new, held = drop_light_tiles(bits, torch.full_like(stats, torch.nan), forced, 1.0, scales)
    assert torch.equal(new, bits)
    assert bool((held == 0).all())
