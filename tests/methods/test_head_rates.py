import pytest
import torch

from vidsparse.layout import VideoLayout
from vidsparse.methods.head_rates import head_densities, text_share


@pytest.mark.parametrize(
    ("recall", "sparsity", "expected"),
    [
        ((0.95, 0.85, 0.70, 0.60), 0.8, (0.9, 0.9, 0.7, 0.7)),
        ((0.99, 0.9, 0.85, 0.5), 0.8, (0.9, 0.9, 0.7, 0.7)),
        ((0.7, 0.6, 0.5, 0.4), 0.8, (0.8, 0.8, 0.8, 0.8)),
        ((0.95, 0.3), 0.9, (0.95, 0.85)),
        ((0.95, 0.9, 0.9, 0.9), 0.8, (0.9, 0.9, 0.7, 0.7)),
    ],
)
def test_case_a6_of_the_research(recall, sparsity, expected):
    found = 1 - head_densities(torch.tensor([recall]), 1 - sparsity)
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("heads", [1, 2, 5, 12])
@pytest.mark.parametrize("always", [0.0, 0.05])
def test_the_mean_is_kept_and_rows_of_a_batch_are_apart(heads, always):
    recall = torch.rand(3, heads, generator=torch.Generator().manual_seed(heads))
    found = head_densities(recall, 0.25, always=always, target=0.4)
    torch.testing.assert_close(found.mean(-1), torch.full((3,), 0.25, dtype=torch.float64))
    alone = torch.cat([head_densities(r[None], 0.25, always=always, target=0.4) for r in recall])
    assert torch.equal(found, alone)
    assert float(found.min()) >= always


def test_what_always_stays_is_not_moved():
    found = head_densities(torch.tensor([[0.9, 0.1]]), 0.3, always=0.1)
    torch.testing.assert_close(found[0], torch.tensor([0.2, 0.4], dtype=torch.float64))


def test_text_share_counts_rows_and_columns():
    assert text_share(VideoLayout(2, 3, 4)) == 0
    assert text_share(VideoLayout(2, 3, 4, text_after=8)) == pytest.approx(1 - (24 / 32) ** 2)
