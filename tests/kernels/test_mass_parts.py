import pytest
import torch
from torch import Tensor

from vidsparse.kernels.backends import why_no_triton

# B, H, Sq, Nkv, block_q, parts per key block, query parts per tile.
SHAPES = [
    (1, 1, 1, 1, 64, 1, 8),
    (2, 3, 300, 70, 64, 1, 12),
    (1, 2, 333, 5, 128, 2, 12),
    (1, 1, 500, 65, 192, 1, 8),
    (1, 2, 90, 3, 48, 3, 12),
    (1, 1, 100, 2, 256, 1, 8),
]


def parts_and_sums(
    shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Parts with NaN wherever no part lies, and the masses they make."""
    B, H, Sq, Nkv, block_q, per_kv, slots = shape
    rows, device = -(-Sq // 16), generator.device
    values = torch.rand(B, H, rows, Nkv * per_kv, generator=generator, device=device)
    tiles = -(-rows // slots)
    # A tile of keys may hold columns past the last block, a tile of queries rows past the last.
    parts = torch.full((B, H, tiles * slots, Nkv * per_kv + 1), torch.nan, device=device)
    parts[:, :, :rows, :-1] = values
    parts = parts.unflatten(2, (tiles, slots)).transpose(3, 4).contiguous()
    by_column = values.double().unflatten(3, (Nkv, per_kv)).sum(4)
    sums = torch.stack([x.sum(2) for x in by_column.split(block_q // 16, 2)], 2)
    return parts, sums.float(), {"seq_q": Sq, "block_q": block_q, "parts_per_kv": per_kv}


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_add_up_to_blocks(generator: torch.Generator, shape: tuple[int, ...]) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_mass_parts import join_mass_parts

    parts, sums, sizes = parts_and_sums(shape, generator)
    mass = torch.full_like(sums, torch.nan)
    join_mass_parts(parts, mass, **sizes)
    torch.testing.assert_close(mass, sums)


def test_flagged_blocks_alone_are_written(generator: torch.Generator) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_mass_parts import join_mass_parts

    parts, sums, sizes = parts_and_sums(SHAPES[1], generator)
    only = torch.rand(sums.shape[:3], generator=generator, device=generator.device) < 0.5
    mass = torch.full_like(sums, -1.0)
    join_mass_parts(parts, mass, only=only, **sizes)
    torch.testing.assert_close(mass, torch.where(only[..., None], sums, -1.0))
