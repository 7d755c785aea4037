import pytest
import torch

from vidsparse.layout import (
    VideoLayout,
    identity_order,
    inverse_order,
    pixel_major_order,
    tile_order,
)


def test_pixel_major_order_matches_the_published_example():
    # svg.md L1: frame-major index -> pixel-major position for F=3, N=4.
    order = pixel_major_order(VideoLayout(3, 2, 2))
    assert order.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert inverse_order(order).tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


def test_pixel_major_order_keeps_text_in_place():
    # svg.md L2, text at the end and at the start.
    behind = inverse_order(pixel_major_order(VideoLayout(2, 1, 3, text_after=3)))
    assert behind.tolist() == [0, 2, 4, 1, 3, 5, 6, 7, 8]
    before = inverse_order(pixel_major_order(VideoLayout(2, 1, 3, text_before=2)))
    assert before.tolist() == [0, 1, 2, 4, 6, 3, 5, 7]


@pytest.mark.parametrize("grid", [(1, 3, 5), (4, 1, 1)])
def test_one_frame_or_one_pixel_is_the_identity(grid):
    layout = VideoLayout(*grid, text_before=2)
    assert torch.equal(pixel_major_order(layout), identity_order(layout))


@pytest.mark.parametrize("tile", [(1, 1, 1), (2, 2, 3), (3, 4, 5), (1, 3, 2)])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (0, 2)])
def test_tile_order_is_a_permutation_that_keeps_tiles_together(tile, before, after):
    layout = VideoLayout(3, 4, 5, text_before=before, text_after=after)
    order = tile_order(layout, tile)
    assert order.sort().values.tolist() == list(range(layout.num_tokens))
    assert order[:before].tolist() == list(range(before))
    tiles = []
    for token in (order[before : layout.video_end] - before).tolist():
        f, rest = divmod(token, 20)
        y, x = divmod(rest, 5)
        tiles.append((f // tile[0], y // tile[1], x // tile[2]))
    seen = list(dict.fromkeys(tiles))
    assert tiles == [t for t in seen for _ in range(tiles.count(t))]
    assert seen == sorted(seen)


@pytest.mark.parametrize("tile", [(0, 1, 1), (4, 1, 1), (1, 5, 1)])
def test_tile_beyond_the_grid_is_refused(tile):
    with pytest.raises(ValueError, match="must lie between"):
        tile_order(VideoLayout(3, 4, 5), tile)


def test_inverse_order_undoes_per_head_orders():
    order = torch.stack([torch.randperm(7), torch.arange(7)]).to(torch.int32)
    x = torch.arange(7).expand(2, 7)
    permuted = x.gather(-1, order.long())
    assert torch.equal(permuted.gather(-1, inverse_order(order).long()), x)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0},
        {"text_after": -1},
        {"text_after": 3, "text_valid": (4,)},
    ],
)
def test_impossible_layouts_are_refused(wrong):
    with pytest.raises(ValueError, match=r"at least|must lie"):
        VideoLayout(**{"frames": 2, "height": 2, "width": 2} | wrong)
