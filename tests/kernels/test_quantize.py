import dataclasses

import pytest
import torch
from torch import Tensor

from vidsparse.kernels.quantize import (
    LOG2_E,
    QuantizedQKV,
    quantize_qkv,
    quantize_qkv_torch,
    rotate,
    value_order,
)
from vidsparse.kernels.reference_8bit import dequantized_values, logits


def make_qkv(S: int, D: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    device = generator.device
    # The interpreter multiplies bfloat16 as integers.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    q, k, v = (
        torch.randn(1, 2, S, D, generator=generator, device=device).to(dtype) for _ in range(3)
    )
    return q, k, v


def logit_error(x: QuantizedQKV, q: Tensor, k: Tensor, scale: float) -> float:
    exact = q[0, 1].double() @ k[0, 1].double().mT * scale
    got = logits(x, 0, 1) / LOG2_E + x.lse_shift[0, 1][:, None]
    return float((got - exact).std())


@pytest.mark.parametrize("D", [64, 96, 128])
def test_logits_are_off_by_little_more_than_a_hundredth(D: int, generator: torch.Generator) -> None:
    q, k, v = make_qkv(300, D, generator)
    x = quantize_qkv(q, k, v, block_kv=64)
    assert logit_error(x, q, k, D**-0.5) < 0.015


def test_a_mean_key_costs_nothing(generator: torch.Generator) -> None:
    q, k, v = make_qkv(300, 128, generator)
    k[..., 3] += 50
    k[..., 70] -= 20
    x = quantize_qkv(q, k, v, block_kv=128)
    # 50 is rounded to float16 or bfloat16 in k itself, for both sides alike.
    assert logit_error(x, q, k, 128**-0.5) < 0.015


def test_rotation_spreads_an_outlying_channel(generator: torch.Generator) -> None:
    q, k, v = make_qkv(300, 128, generator)
    k[..., 3] *= 30
    x = quantize_qkv(q, k, v, block_kv=128)
    exact = q[0, 1].double() @ k[0, 1].double().mT * 128**-0.5
    assert logit_error(x, q, k, 128**-0.5) < 0.02 * float(exact.std())


def test_rotation_keeps_products(generator: torch.Generator) -> None:
    x = torch.randn(5, 96, generator=generator, device=generator.device)
    rotated = rotate(x)
    assert rotated.shape == (5, 128)
    torch.testing.assert_close(rotated @ rotated.mT / 128, x @ x.mT, rtol=1e-4, atol=1e-4)


def test_value_order_is_what_a_thread_holds() -> None:
    order = value_order(32, torch.device("cpu")).tolist()
    assert order[:8] == [0, 1, 8, 9, 2, 3, 10, 11]
    assert sorted(order) == list(range(32))
    assert order[16] == 16


def test_values_are_within_half_a_step(generator: torch.Generator) -> None:
    q, k, v = make_qkv(100, 64, generator)
    x = quantize_qkv(q, k, v, block_kv=64)
    assert x.v.shape == (1, 2, 64, 128)
    # Three bits after the leading one, and the smallest step near 0.
    allowed = v.float().abs() / 16 * 1.001 + x.v_scale[..., None, None] * 2**-10
    assert bool(((dequantized_values(x) - v.float()).abs() <= allowed).all())
    padding = x.v.float()[..., torch.argsort(value_order(128, v.device))[100:]]
    assert bool((padding == 0).all())


def test_zeros_stay_zeros(generator: torch.Generator) -> None:
    zero = torch.zeros(1, 2, 40, 64, device=generator.device, dtype=torch.float16)
    x = quantize_qkv(zero, zero, zero, block_kv=32)
    for field in dataclasses.fields(x):
        value = getattr(x, field.name)
        if isinstance(value, Tensor):
            assert bool(value.float().isfinite().all()), field.name
    assert not x.q.any()
    assert not x.k.any()
    assert not x.v.float().any()


@pytest.mark.parametrize(("S", "D", "block"), [(300, 128, 128), (130, 64, 32), (77, 96, 48)])
def test_triton_agrees_with_torch(S: int, D: int, block: int, generator: torch.Generator) -> None:
    from vidsparse.kernels.triton_quantize import quantize_qkv_triton

    q, k, v = make_qkv(S, D, generator)
    k[..., 5] += 4
    # Views whose heads are not contiguous, as a pipeline passes them.
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    want = quantize_qkv_torch(q, k, v, block, 0.1)
    got = quantize_qkv_triton(q, k, v, block, 0.1)
    for name in ("q_scale", "lse_shift", "k_scale", "v_scale"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=4e-3, atol=1e-5)
    for name, share in (("q", 0.01), ("k", 0.05)):
        off = (getattr(got, name).int() - getattr(want, name).int()).abs()
        # A number near the middle between two may go either way.
        assert int(off.max()) <= 1, name
        assert float((off > 0).float().mean()) < share, name
    # Where a value lies near the middle between two, one step.
    off = (got.v.float() - want.v.float()).abs()
    assert bool((off <= want.v.float().abs() / 8 + 2**-9).all())
    assert float((off > 0).float().mean()) < 0.01
