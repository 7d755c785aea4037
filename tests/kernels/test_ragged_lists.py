import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.ragged_block_mask import block_of_token
from vidsparse.kernels.testing import random_ragged_mask


def test_wide_tiles_and_chunks_cover_each_kept_key_once(generator: torch.Generator) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_ragged_lists import chunk_lists

    mask = random_ragged_mask(
        1, 2, 100, 700, q_blocks=9, kv_blocks=23, density=0.6, generator=generator
    )
    lists = chunk_lists(mask, 16, wide=64)
    block_of_key = block_of_token(mask.kv_offsets, 700)
    for h in range(2):
        for i in range(9):
            row = (0, h, i)
            wide = lists.wide[row][: lists.num_wide[row]].tolist()
            entries = lists.entries[row][: lists.num_chunks[row]].tolist()
            seen = torch.zeros(700, dtype=torch.int32)
            for first, size in [(w, 64) for w in wide] + [(e >> 8, e & 255) for e in entries]:
                seen[first : first + size] += 1
            expected = mask.mask[0, h, i][block_of_key[0, h]].int().cpu()
            assert torch.equal(seen, expected)
            sizes = [e & 255 for e in entries]
            lengths = lists.lengths[row][: -(-len(sizes) // 8) * 8].tolist()
            assert lengths == sizes + [0] * (-len(sizes) % 8)
            assert all(n == 16 for n in sizes[: lists.num_full[row]])
            assert all(n < 16 for n in sizes[lists.num_full[row] :])


def test_query_tiles_cover_each_row_once_longest_first(generator: torch.Generator) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_ragged_lists import chunk_lists, ordered_query_tiles

    mask = random_ragged_mask(
        1, 2, 500, 700, q_blocks=9, kv_blocks=23, density=0.6, generator=generator
    )
    lists = chunk_lists(mask, 16, wide=64)
    tiles = ordered_query_tiles(mask.q_offsets, lists, 500, 64, 4)
    work = lists.num_wide + (lists.num_chunks + 3) // 4
    for h in range(2):
        blocks, first, end = (x[0, h].tolist() for x in tiles)
        used = [(b, f, e) for b, f, e in zip(blocks, first, end, strict=True) if f < e]
        rows = [r for _, f, e in used for r in range(f, min(f + 64, e))]
        assert sorted(rows) == list(range(500))
        own = block_of_token(mask.q_offsets[0, h], 500)
        assert all(int(own[f]) == b for b, f, _ in used)
        loads = [int(work[0, h, b]) for b, _, _ in used]
        assert loads == sorted(loads, reverse=True)
