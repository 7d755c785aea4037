import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.bit_masks import mask_from_bits, pack_bits, unpack_bits

LENGTHS = [1, 7, 8, 9, 130]


def random_mask(length: int, generator: torch.Generator) -> torch.Tensor:
    shape = (2, 3, 4, length)
    return torch.rand(shape, generator=generator, device=generator.device) < 0.4


@pytest.mark.parametrize("length", LENGTHS)
def test_unpacking_undoes_packing(length: int, generator: torch.Generator) -> None:
    mask = random_mask(length, generator)
    bits = pack_bits(mask)
    assert bits.dtype is torch.uint8
    assert bits.shape == (2, 3, 4, -(-length // 8))
    assert torch.equal(unpack_bits(bits, length), mask)


def test_bits_lie_where_the_docstring_says_and_the_rest_is_0() -> None:
    mask = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 0, 1], dtype=torch.bool)
    assert pack_bits(mask).tolist() == [0b10000001, 0b10]


def test_masks_meet_as_bits(generator: torch.Generator) -> None:
    a, b = (random_mask(33, generator) for _ in range(2))
    assert torch.equal(unpack_bits(pack_bits(a) & pack_bits(b), 33), a & b)


def expected_lists(mask: torch.Tensor, backwards: bool) -> list[list[int]]:
    lists = []
    for row in mask.flatten(0, -2).cpu():
        kept = row.nonzero()[:, 0].tolist()
        last = [kept.pop()] if kept and kept[-1] == mask.shape[-1] - 1 else []
        lists.append([*(kept[::-1] if backwards else kept), *last])
    return lists


def check_lists(
    counts: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor, backwards: bool
) -> None:
    rows = zip(counts.flatten().tolist(), indices.flatten(0, -2).tolist(), strict=True)
    assert [row[:count] for count, row in rows] == expected_lists(mask, backwards)
    assert bool(((indices >= 0) & (indices < mask.shape[-1])).all())


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_lists_run_in_either_direction_with_the_last_block_last(
    length: int, backwards: bool, generator: torch.Generator
) -> None:
    mask = random_mask(length, generator)
    sizes = {"blocks": (16, 8), "seq_q": 50, "seq_kv": 8 * length - 3}
    lists = mask_from_bits(pack_bits(mask), **sizes, backwards=backwards)
    check_lists(lists.kv_num_blocks, lists.kv_indices, mask, backwards)
    assert torch.equal(lists.to_dense(), mask)
    keys = mask.float() @ torch.tensor([8.0] * (length - 1) + [5.0], device=mask.device)
    assert torch.equal(lists.keys_per_row(), keys.long())


@pytest.mark.parametrize("length", LENGTHS)
def test_triton_equals_torch(
    length: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels import triton_bit_masks

    mask = random_mask(length, generator)[:1, :2, :2]
    # A row takes one round of its program, or several.
    for chunk in (1024, 64):
        monkeypatch.setattr(triton_bit_masks, "_CHUNK", chunk)
        bits = triton_bit_masks.pack_bits_triton(mask)
        assert torch.equal(bits.cpu(), pack_bits(mask.cpu()))
        for backwards in (False, True):
            lists = triton_bit_masks.lists_from_bits_triton(bits, length, backwards=backwards)
            check_lists(*lists, mask, backwards)


def test_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 bytes cannot be a mask of 17 elements; it has 3"):
        unpack_bits(torch.zeros(2, dtype=torch.uint8), 17)
    with pytest.raises(ValueError, match="2 bytes cannot be a mask of 17 elements; it has 3"):
        mask_from_bits(
            torch.zeros(1, 1, 1, 2, dtype=torch.uint8), blocks=(8, 1), seq_q=8, seq_kv=17
        )
