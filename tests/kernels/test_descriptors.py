import pytest
import torch

from vidsparse.kernels.descriptors import head_groups

B, H, S, D = 2, 3, 5, 8


@pytest.mark.parametrize(
    ("lead", "cut", "count"),
    [
        ((B, H), H, 1),
        ((1, 1), H, 1),
        ((1, H), H, B),
        ((B, 1), H, B),
        # Between the last head of a row and the first of the next lies one that is left out.
        ((B, H), H - 1, B),
    ],
)
def test_groups_hold_every_head_in_order_and_share_what_is_shared(lead, cut, count):
    x = torch.arange(B * H * S * D).view(B, H, S, D)[:, :cut]
    lists = torch.arange(lead[0] * lead[1]).view(*lead)[:, :cut]
    groups = head_groups(x, lists)
    assert len(groups) == count
    assert torch.equal(torch.cat([rows for rows, _ in groups]), x.flatten(0, 1))
    held = [kept.expand(len(rows)) for rows, kept in groups]
    assert torch.equal(torch.cat(held), lists.expand(B, cut).flatten())
    assert all(rows.untyped_storage().data_ptr() == x.data_ptr() for rows, _ in groups)


def test_one_batch_row_is_one_group():
    x = torch.zeros(1, H, S, D)
    ((rows, kept),) = head_groups(x, x[:, :1])
    assert (rows.shape, kept.shape) == ((H, S, D), (1, S, D))
