"""Heads in an order of their own beside heads that are not copied: the same as copying all."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.block_sparse_attention import (
    AttentionOutput,
    Impl,
    RunningStat,
    block_sparse_attention,
    restore_attention,
    unsupported_reasons,
)
from vidsparse.kernels.permute import MovedHeads, move_heads, permute_qkv, permute_tokens
from vidsparse.kernels.testing import (
    assert_as_exact_as_eager,
    random_block_mask,
    random_ragged_mask,
)

CASES = [
    ("cpu", Impl.TORCH, torch.float32),
    ("cpu", Impl.REFERENCE, torch.float32),
    ("cpu", Impl.TRITON, torch.float32),
    pytest.param("cuda", Impl.TORCH, torch.bfloat16, marks=pytest.mark.gpu),
    pytest.param("cuda", Impl.TRITON, torch.bfloat16, marks=pytest.mark.gpu),
    pytest.param("cuda", Impl.GLUON, torch.bfloat16, marks=pytest.mark.gpu),
    pytest.param("cuda", Impl.GLUON, torch.float16, marks=pytest.mark.gpu),
]
# B, H, Sq, Skv, D, block_q, block_kv: partial last blocks, padded heads, several boxes of a tile,
# one and three warpgroups.
SHAPES = [
    (1, 4, 300, 300, 128, 128, 128),
    (2, 2, 200, 333, 64, 192, 128),
    (2, 3, 257, 130, 96, 64, 32),
    (1, 2, 130, 200, 64, 128, 128),
]
WHICH = {
    "none": lambda n: torch.zeros(n, dtype=torch.bool),
    "all": lambda n: torch.ones(n, dtype=torch.bool),
    "some": lambda n: torch.arange(n) % 3 != 1,
}


def draw(
    shape: tuple[int, ...], which: str, dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], BlockMask, Tensor, list[Tensor]]:
    """Draw q, k, v as a model has them, (B, S, H, D) in memory, a mask, heads and orders."""
    B, H, Sq, Skv, D, block_q, block_kv = shape
    device = generator.device
    qkv = [
        torch.randn(B, S, H, D, generator=generator, device=device).to(dtype).transpose(1, 2)
        for S in (Sq, Skv, Skv)
    ]
    mask = random_block_mask(
        B, H, Sq, Skv, block_q=block_q, block_kv=block_kv, density=0.5, generator=generator
    )
    heads = WHICH[which](B * H).view(B, H).to(device)
    orders = []
    for S in (Sq, Skv):
        order = torch.rand(B, H, S, generator=generator, device=device).argsort(-1)
        stay = torch.arange(S, device=device)
        orders.append(torch.where(heads[..., None], order, stay).to(torch.int32))
    return qkv, mask, heads, orders


def by_copying(
    qkv: list[Tensor], mask: BlockMask, orders: list[Tensor], impl: Impl
) -> AttentionOutput:
    output = block_sparse_attention(*permute_qkv(*qkv, *orders), mask, impl=impl)
    return restore_attention(output, orders[0])


def unread_elsewhere(moved: MovedHeads) -> MovedHeads:
    """Put NaN into the copies that nothing may read."""
    stay = ~moved.heads[..., None, None]
    return moved._replace(
        k=moved.k.masked_fill(stay, torch.nan), v=moved.v.masked_fill(stay, torch.nan)
    )


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("device", "impl", "dtype"), CASES)
def test_moving_some_heads_equals_copying_all(
    device: str, impl: Impl, dtype: torch.dtype, shape: tuple[int, ...], which: str
) -> None:
    generator = torch.Generator(device).manual_seed(0)
    qkv, mask, heads, orders = draw(shape, which, dtype, generator)
    if unsupported_reasons(impl, *qkv, mask):
        pytest.skip("; ".join(unsupported_reasons(impl, *qkv, mask)))
    moved = unread_elsewhere(move_heads(*qkv[1:], heads, *orders))
    got = block_sparse_attention(*qkv, mask, impl=impl, moved=moved)
    want = by_copying(qkv, mask, orders, impl)
    assert got.lse is not None
    assert want.lse is not None
    assert torch.equal(got.lse, want.lse)
    assert torch.equal(got.out, want.out)
    if impl in (Impl.TRITON, Impl.GLUON):
        assert got.out.stride() == qkv[0].stride()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_only_heads_that_move_are_written(device: str) -> None:
    generator = torch.Generator(device).manual_seed(0)
    qkv, _, heads, orders = draw(SHAPES[2], "some", torch.float32, generator)
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_permute import gather_rows

    (whole,) = gather_rows(qkv[1:2], orders[1:])
    filled = torch.full_like(whole, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *_, **__: filled)
        (some,) = gather_rows(qkv[1:2], orders[1:], heads=heads)
    assert bool((some[~heads] == 7).all())
    assert torch.equal(some[heads], whole[heads])


def test_tiles_with_nan_are_attended_to_again_in_their_order(generator: torch.Generator) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_retry import attend_again

    dtype = torch.float16
    qkv, mask, heads, orders = draw((2, 2, 200, 190, 40, 64, 128), "some", dtype, generator)
    moved = unread_elsewhere(move_heads(*qkv[1:], heads, *orders))
    # Exact values of the copying path, then the tile of one row of each head is lost.
    want = by_copying(qkv, mask, orders, Impl.REFERENCE)
    assert want.lse is not None
    out, lse = want.out.clone(), want.lse.clone()
    for b, h in ((0, 0), (0, 1), (1, 0), (1, 1)):
        tile = orders[0][b, h, 64:128].long()
        lse[b, h, tile[3]] = torch.nan
        out[b, h, tile] = torch.nan
    attend_again(*qkv, out, lse, mask, 40**-0.5, moved=moved)
    in_order = AttentionOutput(permute_tokens(out, orders[0]), lse.gather(-1, orders[0].long()))
    assert_as_exact_as_eager(in_order, *permute_qkv(*qkv, *orders), mask)


@pytest.mark.gpu
@pytest.mark.parametrize("D", [64, 128])
def test_rising_logits_are_attended_to_again(gpu_generator: torch.Generator, D: int) -> None:
    shape = (1, 4, 2000, 2000, D, 128, 128)
    qkv, mask, heads, orders = draw(shape, "some", torch.bfloat16, gpu_generator)
    if unsupported_reasons(Impl.GLUON, *qkv, mask):
        pytest.skip("; ".join(unsupported_reasons(Impl.GLUON, *qkv, mask)))
    qkv[1] = qkv[1] + 12 * qkv[0].mean(2, keepdim=True) * torch.arange(2000, 0, -1).cuda()[:, None]
    moved = unread_elsewhere(move_heads(*qkv[1:], heads, *orders))
    got = block_sparse_attention(*qkv, mask, impl=Impl.GLUON, moved=moved)
    want = by_copying(qkv, mask, orders, Impl.GLUON)
    assert got.lse is not None
    assert want.lse is not None
    assert bool(got.lse.isfinite().all())
    assert torch.equal(got.lse, want.lse)
    assert torch.equal(got.out, want.out)


@pytest.mark.gpu
def test_the_device_is_never_waited_for(gpu_generator: torch.Generator) -> None:
    qkv, mask, heads, orders = draw(SHAPES[0], "some", torch.bfloat16, gpu_generator)

    def attend() -> AttentionOutput:
        return block_sparse_attention(*qkv, mask, moved=move_heads(*qkv[1:], heads, *orders))

    attend()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_does_not_fit_is_refused(generator: torch.Generator) -> None:
    qkv, mask, heads, orders = draw(SHAPES[0], "some", torch.float32, generator)
    moved = move_heads(*qkv[1:], heads, *orders)
    for bad, message in (
        (moved._replace(heads=heads.float()), "moved.heads is"),
        (moved._replace(q_order=orders[0].long()), "moved.q_order is"),
        (moved._replace(k=moved.k[:, :, 1:]), "moved.k is"),
        (moved._replace(v=moved.v.transpose(1, 2).contiguous().transpose(1, 2)), "moved.v is"),
    ):
        with pytest.raises(ValueError, match=message):
            block_sparse_attention(*qkv, mask, moved=bad)
    for extra in ({"compensate": True}, {"running": RunningStat.MASS}):
        with pytest.raises(ValueError, match="without compensation and statistics"):
            block_sparse_attention(*qkv, mask, moved=moved, **extra)  # type: ignore[arg-type]
    ragged = random_ragged_mask(
        1, 4, 300, 300, q_blocks=3, kv_blocks=4, density=0.5, generator=generator
    )
    with pytest.raises(ValueError, match="blocks of one size"):
        block_sparse_attention(*qkv, ragged, moved=moved)


def test_orders_out_of_range_touch_nothing_outside(generator: torch.Generator) -> None:
    qkv, mask, heads, orders = draw(SHAPES[0], "all", torch.float32, generator)
    impl = Impl.TRITON if generator.device.type == "cpu" else Impl.AUTO
    if impl is Impl.TRITON and unsupported_reasons(impl, *qkv, mask):
        pytest.skip("; ".join(unsupported_reasons(impl, *qkv, mask)))
    moved = move_heads(*qkv[1:], heads, *orders)
    wild = moved.q_order.clone()
    wild[..., ::7] = 10**9
    wild[..., 1::7] = -5
    tame = block_sparse_attention(*qkv, mask, impl=impl, moved=moved)
    got = block_sparse_attention(*qkv, mask, impl=impl, moved=moved._replace(q_order=wild))
    stored = wild[(wild >= 0) & (wild < wild.shape[-1])].view(*wild.shape[:2], -1).long()
    index = stored[..., None].expand(*stored.shape, qkv[0].shape[-1])
    assert torch.equal(got.out.gather(2, index), tame.out.gather(2, index))


def test_masks_may_be_shared_by_heads(generator: torch.Generator) -> None:
    qkv, mask, heads, orders = draw(SHAPES[1], "some", torch.float32, generator)
    shared = replace(
        mask, kv_num_blocks=mask.kv_num_blocks[:1, :1], kv_indices=mask.kv_indices[:1, :1]
    )
    moved = move_heads(*qkv[1:], heads, *orders)
    got = block_sparse_attention(*qkv, shared, moved=moved)
    want = by_copying(qkv, shared, orders, Impl.AUTO)
    torch.testing.assert_close(got.out, want.out)
