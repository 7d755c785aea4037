import pytest
import torch

from vidsparse.errors import UsageError
from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.layout import VideoLayout, inverse_order, pixel_major_order
from vidsparse.methods.blocks import (
    first_frame_blocks,
    forced_blocks,
    least_density,
    raster_geometry,
    strip_geometry,
    text_blocks,
    tile_geometry,
)
from vidsparse.methods.mask_bits import pack_bits
from vidsparse.methods.partitions import tile_partition, uniform_partition
from vidsparse.methods.windows import choose_tile, exact_window

CPU = torch.device("cpu")


def test_tiles_match_the_published_cases():
    # draft D1, D1b and D3: order and sizes.
    square = tile_partition(VideoLayout(1, 4, 4), (1, 2, 2))
    assert square.order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    even = tile_partition(VideoLayout(1, 4, 6), (1, 2, 2))
    expected = "0 1 6 7 2 3 8 9 4 5 10 11 12 13 18 19 14 15 20 21 16 17 22 23"
    back = "0 1 4 5 8 9 2 3 6 7 10 11 12 13 16 17 20 21 14 15 18 19 22 23"
    assert even.order.tolist() == [int(n) for n in expected.split()]
    assert inverse_order(even.order).tolist() == [int(n) for n in back.split()]
    ragged = tile_partition(VideoLayout(1, 3, 5), (1, 2, 2))
    assert ragged.sizes.tolist() == [4, 4, 2, 2, 2, 1]
    assert ragged.order.tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]
    assert ragged.block is None
    assert even.block == 4


@pytest.mark.parametrize(("frames", "height", "width"), [(2, 4, 6), (3, 8, 32), (2, 32, 48)])
def test_tiles_are_the_strips_of_the_original(frames, height, width):
    # draft D2: parts of h rows, column groups of w, rows, then w consecutive tokens.
    h, w = (2, 3) if height == 4 else (8, 16)
    strips = [
        part * width * h + row * width + column * w + t
        for part in range(frames * height // h)
        for column in range(width // w)
        for row in range(h)
        for t in range(w)
    ]
    assert tile_partition(VideoLayout(frames, height, width), (1, h, w)).order.tolist() == strips


@pytest.mark.parametrize(
    ("grid", "cells", "fill"),
    # draft T1: 8 x 16 windows per frame and the share of them that is filled.
    [
        ((48, 80), 30, 1.0),
        ((45, 80), 30, 0.938),
        ((32, 48), 12, 1.0),
        ((30, 52), 16, 0.762),
        ((48, 85), 36, 0.885),
    ],
)
def test_fixed_windows_have_the_published_fill(grid, cells, fill):
    sizes = tile_partition(VideoLayout(1, *grid), (1, 8, 16)).sizes
    assert len(sizes) == cells
    assert int(sizes.sum()) == grid[0] * grid[1]
    assert float(sizes.sum()) / (cells * 128) == pytest.approx(fill, abs=5e-4)


@pytest.mark.parametrize(
    ("grid", "large", "small"),
    # draft T2: best exact tiling for blocks of 128 and of 64 tokens.
    [
        ((45, 80), (15, 8), (15, 4)),
        ((30, 52), (6, 13), (15, 4)),
        ((48, 80), (8, 16), (8, 8)),
        ((48, 85), (6, 17), (12, 5)),
        ((60, 104), (15, 8), (15, 4)),
    ],
)
def test_exact_windows_match_the_published_ones(grid, large, small):
    assert exact_window(*grid, 128) == large
    assert exact_window(*grid, 64) == small


@pytest.mark.parametrize(
    "grid", [(1, 1, 1), (3, 7, 11), (5, 13, 29), (21, 45, 80), (9, 17, 31), (4, 1, 97), (2, 2, 2)]
)
@pytest.mark.parametrize("room", [16, 64, 128])
def test_every_grid_gets_tiles_that_fit_the_block(grid, room):
    tile = choose_tile(grid, room)
    cut = tile_partition(VideoLayout(*grid), tile)
    assert tile[0] == 1
    assert int(cut.sizes.max()) <= room
    assert int(cut.sizes.sum()) == cut.num_tokens
    frame = grid[1] * grid[2]
    assert int(cut.sizes.min()) > 0
    assert len(cut.sizes) <= grid[0] * max(2.2 * -(-frame // room), 2)


def test_tiles_over_frames_share_the_room():
    assert choose_tile((16, 16, 16), 64, frames=4) == (4, 4, 4)
    with pytest.raises(ValueError, match=r"frames=17 per tile must lie in 1\.\.16"):
        choose_tile((16, 16, 16), 64, frames=17)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (5, 0), (0, 6), (4, 4)])
def test_text_blocks_are_those_that_hold_text(before, after):
    layout = VideoLayout(2, 3, 4, text_before=before, text_after=after)
    is_text = torch.ones(layout.num_tokens, dtype=torch.bool)
    is_text[before : layout.video_end] = False
    for cut in (uniform_partition(layout.num_tokens, 4), tile_partition(layout, (1, 2, 2))):
        parts = is_text.split(cut.sizes.tolist())
        assert text_blocks(layout, cut).tolist() == [bool(part.any()) for part in parts]


def test_first_frame_blocks_follow_the_order():
    layout = VideoLayout(4, 2, 3, text_before=2)
    order = pixel_major_order(layout)
    first = (order >= 2) & (order < 8)
    for size in (1, 2, 5):
        cut = uniform_partition(layout.num_tokens, size, order)
        expected = [bool(part.any()) for part in first.split(cut.sizes.tolist())]
        assert first_frame_blocks(layout, cut).tolist() == expected


def test_forced_blocks_count_as_the_least_density():
    layout = VideoLayout(3, 2, 4, text_after=3)
    q, kv = uniform_partition(27, 8), uniform_partition(27, 4)
    forced = forced_blocks(layout, q, kv, first_frame=True)
    wide = forced.repeat_interleave(8, 0)[:27].repeat_interleave(4, 1)[:, :27]
    assert wide[24:].all()
    assert wide[:, 24:].all()
    assert wide[:, :8].all()
    assert wide.diagonal().all()
    assert least_density(forced, q, kv) == pytest.approx(float(wide.float().mean()))


@pytest.mark.parametrize(
    ("layout", "first_frame", "own", "said"),
    [
        (VideoLayout(3, 4, 4), False, True, "each block's own keys"),
        (VideoLayout(3, 4, 4, 5), True, True, "text, the first frame and each block's own keys"),
        (VideoLayout(1, 4, 4), True, False, "one block per row"),
    ],
)
def test_refusals_name_what_always_stays_on_this_layout(layout, first_frame, own, said):
    geometry = raster_geometry(layout, (8, 8), CPU, first_frame=first_frame, own=own)
    with pytest.raises(UsageError, match=f"too small here: {said} always stay"):
        geometry.check(geometry.least_density - 0.01)
    geometry.check(geometry.least_density)


def test_plans_use_lists_for_equal_blocks_and_offsets_for_others():
    layout = VideoLayout(2, 4, 6)
    raster = raster_geometry(layout, (8, 8), CPU)
    tiles = tile_geometry(layout, (1, 2, 4), CPU)
    assert isinstance(raster.plan(raster.forced[None, None]).mask, BlockMask)
    plan = tiles.plan(tiles.forced[None, None])
    assert isinstance(plan.mask, RaggedBlockMask)
    assert float(plan.density()) == pytest.approx(tiles.least_density)
    assert tile_geometry(layout, (1, 2, 4), CPU) is tiles


def test_a_plan_of_bits_is_the_plan_of_their_mask():
    layout = VideoLayout(3, 6, 7, text_after=5)
    geometry = strip_geometry(layout, 2, 16, CPU)
    kept = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    plan, other = geometry.plan_of_bits(pack_bits(kept)), geometry.plan(kept)
    assert torch.equal(plan.mask.to_dense(), kept)
    assert torch.equal(plan.q_order, other.q_order)
    assert torch.equal(plan.density(), other.density())
    ragged = tile_geometry(layout, (1, 4, 4), CPU)
    with pytest.raises(ValueError, match="only for equal blocks"):
        ragged.plan_of_bits(pack_bits(kept))
