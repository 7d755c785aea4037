from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor

from vidsparse.kernels.backends import Impl
from vidsparse.kernels.block_statistics import (
    block_mass,
    mass_unsupported_reasons,
    renew_stale_mass,
)
from vidsparse.kernels.hopper_mass import MASS_CONFIGS, MassConfig, block_mass_gluon
from vidsparse.kernels.reference import attention_reference, block_mass_reference

# B, H, Sq, Skv, D, block_q, block_kv: odd on purpose; 1, 2, 3 and more tiles of keys.
SHAPES = [
    (1, 1, 1, 1, 64, 64, 64),
    (2, 2, 100, 63, 64, 64, 64),
    (1, 2, 130, 128, 128, 64, 128),
    (1, 2, 65, 200, 128, 128, 128),
    (2, 1, 257, 390, 128, 128, 128),
    (1, 3, 200, 333, 96, 192, 64),
    (1, 2, 300, 900, 128, 256, 256),
    (1, 1, 700, 1000, 40, 16, 48),
    (1, 2, 400, 300, 128, 192, 192),
]
CONFIGS = [
    MassConfig(groups, tile_kv, stages, registers, budget, cubic)
    for groups, registers, budget in ((2, 240, 168), (3, 160, 128))
    for tile_kv, stages, cubic in ((128, 2, 0), (128, 4, 4), (64, 3, 8))
]
# 2^x by the cubic is off by 1e-4; logits, products of D terms in float32, by 1e-5 for those below
# 30 here, and the sums of float32 weights by less. Masses below the floor are flushed.
CLOSE = {"rtol": 2e-4, "atol": 1e-30}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Let torch.empty return NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def amid_nan(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draw (B, H, S, D) as a view of (B, S + 8, H + 1, D + 8) with NaN around it."""
    B, H, S, D = shape
    buffer = torch.full((B, S + 8, H + 1, D + 8), torch.nan, dtype=dtype, device="cuda")
    view = buffer[:, :S, :H, :D].transpose(1, 2)
    view.copy_(torch.randn(shape, generator=generator, device="cuda"))
    return view


def contiguous(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def make_case(
    shape: tuple[int, ...],
    generator: torch.Generator,
    dtype: torch.dtype = torch.bfloat16,
    draw: Callable[..., Tensor] = contiguous,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and an LSE that is off, with a row that weighs nothing where there are more."""
    B, H, Sq, Skv, D, block_q, block_kv = shape
    q, k = draw((B, H, Sq, D), dtype, generator), draw((B, H, Skv, D), dtype, generator)
    reasons = mass_unsupported_reasons(Impl.GLUON, q, k, block_q=block_q, block_kv=block_kv)
    if reasons:
        pytest.skip("; ".join(reasons))
    lse = attention_reference(q, k, k, None).lse
    assert lse is not None
    lse = lse + torch.randn(lse.shape, generator=generator, device="cuda")
    if Sq > 1:
        lse[:, :, Sq // 2] = -torch.inf
    return q, k, lse


def exact_mass(q: Tensor, k: Tensor, lse: Tensor, block_q: int, block_kv: int) -> Tensor:
    edges = [
        torch.tensor([*range(0, S, block), S])
        for S, block in ((q.shape[2], block_q), (k.shape[2], block_kv))
    ]
    lse = lse.nan_to_num(neginf=torch.inf)
    return block_mass_reference(q, k, lse, *edges).float()


def check(q: Tensor, k: Tensor, lse: Tensor, blocks: tuple[int, int], config: MassConfig) -> None:
    with poisoned_memory():
        got = block_mass_gluon(q, k, lse, *blocks, q.shape[-1] ** -0.5, config=config)
    torch.testing.assert_close(got, exact_mass(q, k, lse, *blocks), **CLOSE)


@pytest.mark.gpu
@pytest.mark.parametrize("draw", [contiguous, amid_nan])
@pytest.mark.parametrize("shape", SHAPES)
def test_mass_matches_float64(
    shape: tuple[int, ...], draw: Callable[..., Tensor], gpu_generator: torch.Generator
) -> None:
    q, k, lse = make_case(shape, gpu_generator, draw=draw)
    with poisoned_memory():
        got = block_mass(q, k, lse, block_q=shape[5], block_kv=shape[6], impl=Impl.GLUON)
    torch.testing.assert_close(got, exact_mass(q, k, lse, *shape[5:]), **CLOSE)


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS)
def test_every_cta_shape(config: MassConfig, gpu_generator: torch.Generator) -> None:
    for Skv in (1, 128, 200, 300, 1000):
        q, k, lse = make_case((1, 2, 500, Skv, 128, 128, 128), gpu_generator)
        check(q, k, lse, (128, 128), config)


@pytest.mark.gpu
@pytest.mark.parametrize("D", [64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_random_shapes(D: int, dtype: torch.dtype, gpu_generator: torch.Generator) -> None:
    sizes = torch.Generator().manual_seed(D)
    for _ in range(12):
        B, H, rows, keys = (
            int(torch.randint(1, n, (), generator=sizes)) for n in (3, 4, 1500, 1500)
        )
        blocks = tuple(64 * int(torch.randint(1, 5, (), generator=sizes)) for _ in "qk")
        q, k, lse = make_case((B, H, rows, keys, D, *blocks), gpu_generator, dtype)
        check(q, k, lse, (blocks[0], blocks[1]), MASS_CONFIGS[64 if D == 64 else 128])


@pytest.mark.gpu
@pytest.mark.parametrize("shift", [-30.0, 0.0, 60.0, 200.0])
def test_masses_of_a_stale_lse(shift: float, gpu_generator: torch.Generator) -> None:
    q, k, lse = make_case((1, 2, 300, 500, 128, 128, 128), gpu_generator)
    for config in (MASS_CONFIGS[128], CONFIGS[1]):
        check(q, k, lse + shift, (128, 128), config)


@pytest.mark.gpu
def test_exact_lse_makes_rows_sum_to_their_queries(gpu_generator: torch.Generator) -> None:
    q, k, _ = make_case((1, 2, 4200, 7777, 128, 128, 128), gpu_generator)
    lse = attention_reference(q, k, k, None, compute_dtype=torch.float32).lse
    mass = block_mass(q, k, lse, block_q=128, block_kv=128, impl=Impl.GLUON)
    queries = torch.full_like(mass[..., 0], 128)
    queries[..., -1] = 4200 % 128
    torch.testing.assert_close(mass.sum(-1), queries, rtol=2e-4, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("block_q", [64, 128, 320])
def test_stale_blocks_alone_are_renewed(block_q: int, gpu_generator: torch.Generator) -> None:
    q, k, lse = make_case((2, 2, 1000, 700, 128, block_q, 128), gpu_generator)
    mass = exact_mass(q, k, lse, block_q, 128)
    stale = torch.rand(mass.shape[:3], generator=gpu_generator, device="cuda") < 0.4
    with poisoned_memory():
        renewed, new = renew_stale_mass(q, k, lse, mass, stale, block_q=block_q, block_kv=128)
    assert torch.equal(new[~stale], mass[~stale])
    torch.testing.assert_close(new[stale], exact_mass(q, k, renewed, block_q, 128)[stale], **CLOSE)


@pytest.mark.gpu
def test_repeated_runs_are_bitwise_equal(gpu_generator: torch.Generator) -> None:
    q, k, lse = make_case((1, 4, 5000, 5000, 128, 128, 128), gpu_generator)
    mass = partial(block_mass, q, k, lse, block_q=128, block_kv=128, impl=Impl.GLUON)
    first = mass()
    for _ in range(20):
        assert torch.equal(mass(), first)


@pytest.mark.gpu
def test_mass_never_waits_for_the_device(gpu_generator: torch.Generator) -> None:
    q, k, lse = make_case((2, 2, 300, 300, 64, 64, 64), gpu_generator, draw=amid_nan)
    stale = torch.ones(2, 2, 5, dtype=torch.bool, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        mass = block_mass(q, k, lse, block_q=64, block_kv=64, impl=Impl.GLUON)
        renew_stale_mass(q, k, lse, mass, stale, block_q=64, block_kv=64)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_hopper_takes_this_kernel_by_itself(
    gpu_generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    q, k, lse = make_case((1, 1, 200, 200, 88, 64, 64), gpu_generator)
    with caplog.at_level("INFO", logger="vidsparse.kernels.backends"):
        chosen = block_mass(q, k, lse, block_q=64, block_kv=64)
    assert "head size 88: gluon" in caplog.text
    asked = block_mass(q, k, lse, block_q=64, block_kv=64, impl=Impl.GLUON)
    assert torch.equal(chosen, asked)
    with caplog.at_level("INFO", logger="vidsparse.kernels.backends"):
        block_mass(q, k, lse, block_q=40, block_kv=64)
    assert "triton (gluon: query blocks of 40 tokens; use a multiple of 16)" in caplog.text


def test_an_explicit_impl_is_refused_not_replaced() -> None:
    x = torch.zeros(1, 1, 8, 64)
    with pytest.raises(ValueError, match=r"impl='gluon' cannot run here: .*sm_90"):
        block_mass(x, x, block_q=64, block_kv=64, impl=Impl.GLUON)
    with pytest.raises(ValueError, match="impl='reference' cannot run here: block mass has"):
        block_mass(x, x, block_q=64, block_kv=64, impl=Impl.REFERENCE)
    offsets = torch.tensor([[[0, 3, 8]]], dtype=torch.int32)
    with pytest.raises(ValueError, match="impl='triton' cannot run here: blocks of several sizes"):
        block_mass(x, x, q_offsets=offsets, block_kv=4, impl=Impl.TRITON)


def test_what_the_kernel_cannot_sum_is_named() -> None:
    x = torch.zeros(1, 1, 8, 64)
    reasons = mass_unsupported_reasons(Impl.GLUON, x, x.half(), block_q=40, block_kv=None)
    text = "; ".join(reasons)
    for part in ("dtypes torch.float32 and torch.float16", "query blocks of 40 tokens",
                 "key blocks of several sizes"):  # fmt: skip
        assert part in text
