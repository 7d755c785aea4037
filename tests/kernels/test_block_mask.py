import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.kernels.compact_lists import compact_lists
from vidsparse.kernels.testing import random_block_mask, random_ragged_mask


def test_lists_round_trip_through_dense(generator: torch.Generator) -> None:
    dense = torch.rand(2, 3, 5, 7, generator=generator, device=generator.device) < 0.4
    mask = BlockMask.from_dense(dense, block_q=16, block_kv=32, seq_q=70, seq_kv=200)
    mask.validate()
    assert torch.equal(mask.to_dense(), dense)


@pytest.mark.parametrize("columns", [1, 63, 1024, 2500])
def test_lists_ascend_for_rows_of_any_length(generator: torch.Generator, columns: int) -> None:
    dense = torch.rand(3, columns, generator=generator, device=generator.device) < 0.3
    counts, indices = compact_lists(dense)
    for row in range(3):
        assert torch.equal(indices[row, : counts[row]].long(), dense[row].nonzero()[:, 0])


def test_density_counts_tokens_of_partial_blocks(generator: torch.Generator) -> None:
    mask = random_block_mask(2, 3, 100, 63, block_q=32, block_kv=16, density=0.4,
                             generator=generator)  # fmt: skip
    torch.testing.assert_close(mask.density(), mask.token_mask().float().mean())


def test_ragged_density_counts_tokens(generator: torch.Generator) -> None:
    mask = random_ragged_mask(2, 3, 100, 63, q_blocks=7, kv_blocks=9, density=0.4,
                              generator=generator)  # fmt: skip
    mask.validate()
    torch.testing.assert_close(mask.density(), mask.token_mask().float().mean())


def test_full_mask_keeps_everything() -> None:
    mask = BlockMask.full(block_q=32, block_kv=16, seq_q=100, seq_kv=63)
    assert mask.density() == 1
    assert mask.to_dense().all()


def test_wrong_number_of_blocks_is_refused() -> None:
    dense = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"need \(4, 5\)"):
        BlockMask.from_dense(dense, block_q=32, block_kv=16, seq_q=100, seq_kv=65)


def test_values_out_of_range_are_found() -> None:
    mask = BlockMask.full(block_q=32, block_kv=16, seq_q=100, seq_kv=63)
    mask.kv_indices[0, 0, 0, 0] = 4
    with pytest.raises(ValueError, match=r"must lie in 0\.\.3"):
        mask.validate()


def test_all_reasons_are_named_at_once() -> None:
    counts, indices = torch.zeros(1, 1, 2), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"kv_num_blocks is .*; kv_indices is .*"):
        BlockMask(counts, indices, 32, 32, 64, 64)


def test_ragged_offsets_of_wrong_length_are_refused() -> None:
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    offsets = torch.tensor([0, 5, 9, 10], dtype=torch.int32).view(1, 1, 4)
    with pytest.raises(ValueError, match=r"kv_offsets has shape"):
        RaggedBlockMask(offsets, offsets[..., :3], mask, 10, 10)


@pytest.mark.gpu
def test_building_lists_never_waits_for_the_device(gpu_generator: torch.Generator) -> None:
    dense = torch.rand(1, 2, 10, 12, generator=gpu_generator, device="cuda") < 0.4
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask = BlockMask.from_dense(dense, block_q=16, block_kv=16, seq_q=160, seq_kv=190)
        mask.density()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(mask.to_dense(), dense)


@pytest.mark.parametrize("heads", [(1, 1), (2, 3)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_kept_pairs_in_one_launch(
    generator: torch.Generator, heads: tuple[int, int], density: float
) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_kept_pairs import kept_pairs_triton

    device = generator.device
    # Empty rows, a partial last block that some rows hold, more rows than a program adds up.
    equal = torch.rand(*heads, 70, 13, generator=generator, device=device) < density
    blocks = BlockMask.from_dense(equal, block_q=16, block_kv=32, seq_q=1111, seq_kv=399)
    ragged = random_ragged_mask(
        *heads, 300, 500, q_blocks=19, kv_blocks=140, density=density, generator=generator
    )
    shared = RaggedBlockMask(
        ragged.q_offsets[:1, :1], ragged.kv_offsets[:1], ragged.mask[:1], 300, 500
    )
    for mask in (blocks, ragged, shared):
        pairs, count = kept_pairs_triton(mask)
        tokens = mask.token_mask()
        assert count == tokens[..., 0, 0].numel()
        assert int(pairs) == int(tokens.sum())
        assert float(mask.density()) == pytest.approx(float(tokens.double().mean()), rel=1e-6)
