import pytest
import torch

from vidsparse.methods.mask_bits import pack_bits, unpack_bits


@pytest.mark.parametrize("length", [1, 7, 8, 9, 591])
def test_unpacking_undoes_packing(length):
    mask = torch.rand(2, 3, 4, length, generator=torch.Generator().manual_seed(length)) < 0.4
    bits = pack_bits(mask)
    assert bits.dtype is torch.uint8
    assert bits.shape == (2, 3, 4, -(-length // 8))
    assert torch.equal(unpack_bits(bits, length), mask)


def test_bits_lie_where_the_docstring_says_and_the_rest_is_0():
    mask = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 0, 1], dtype=torch.bool)
    assert pack_bits(mask).tolist() == [0b10000001, 0b10]


def test_masks_meet_as_bits():
    a, b = (torch.rand(5, 33, generator=torch.Generator().manual_seed(s)) < 0.5 for s in (0, 1))
    assert torch.equal(unpack_bits(pack_bits(a) & pack_bits(b), 33), a & b)


def test_another_length_is_refused():
    with pytest.raises(ValueError, match="2 bytes cannot be a mask of 17 elements; it has 3"):
        unpack_bits(torch.zeros(2, dtype=torch.uint8), 17)


def test_packing_never_waits_for_the_device(cases):
    with cases.no_host_sync():
        unpack_bits(pack_bits(torch.ones(3, 20, dtype=torch.bool)), 20)
