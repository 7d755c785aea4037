import pytest
import torch
from torch import Tensor

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.block_errors import block_errors
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.block_means import KeyValueMeans, key_value_means

# B, H, S, D, block_q, block_kv: odd on purpose.
SHAPES = [
    (1, 2, 300, 64, 128, 128),
    (2, 1, 200, 128, 64, 64),
    (2, 2, 257, 64, 128, 64),
    (1, 1, 300, 40, 48, 16),
    (1, 2, 350, 40, 200, 100),
    (1, 1, 63, 128, 128, 256),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Float32 logits and sums of some hundred terms each; measured are 2^-22 of what this multiplies.
FLOAT32 = 2.0**-16


def draw(
    shape: tuple[int, ...],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    *,
    noise: float = 1.0,
    tangents: bool = True,
) -> tuple[Tensor, Tensor, Tensor, KeyValueMeans]:
    """Blocks of tokens that have something in common, their values far from 0, and their means."""
    B, H, S, D, _, block_kv = shape
    N, device = -(-S // block_kv), generator.device

    def randn(tokens: int) -> Tensor:
        # Strided as models have it.
        return torch.randn(B, tokens, H, D, generator=generator, device=device).transpose(1, 2)

    def tokens() -> Tensor:
        common = randn(N).transpose(1, 2).repeat_interleave(block_kv, 1)[:, :S].transpose(1, 2)
        return common + noise * randn(S)

    q, k, v = (x.to(dtype) for x in (randn(S), tokens(), 3 + tokens()))
    mask = BlockMask.full(block_q=16, block_kv=block_kv, seq_q=S, seq_kv=S, device=device)
    means = key_value_means(k, v, mask, randn(N).contiguous() if tangents else None)
    return q, k, v, means


def exact(
    q: Tensor, k: Tensor, v: Tensor, means: KeyValueMeans, block_q: int, block_kv: int
) -> tuple[Tensor, Tensor]:
    """Return the errors in float64, and how far relative rounding by 1 could move them.

    A weight rounded by a share moves a row by that share of weight * |v - out|, an output by that
    of |out| * (mass - mean's weight); norms move by no more than all of these together.
    """
    q, k, v, k_mean, v_mean, log_size = (x.double() for x in (q, k, v, *means))
    logits = q @ k.mT * q.shape[3] ** -0.5
    lse = logits.logsumexp(-1, keepdim=True)
    weights = (logits - lse).exp()
    out = weights @ v
    mean_weights = (q @ k_mean.mT * q.shape[3] ** -0.5 + log_size[:, :, None] - lse).exp()
    away = weights * torch.cdist(out, v)
    errors, moves = [], []
    for j, start in enumerate(range(0, k.shape[2], block_kv)):
        keys, mean_weight = slice(start, start + block_kv), mean_weights[..., j : j + 1]
        part = weights[..., keys]
        excess = part.sum(-1, keepdim=True) - mean_weight
        moved = part @ v[:, :, keys] - mean_weight * v_mean[:, :, j : j + 1] - out * excess
        move = away[..., keys].sum(-1) + out.norm(dim=-1) * excess[..., 0].abs()
        for result, rows in ((errors, moved.norm(dim=-1)), (moves, move)):
            blocks = [x.square().mean(-1).sqrt() for x in rows.split(block_q, -1)]
            result.append(torch.stack(blocks, -1))
    return torch.stack(errors, -1), torch.stack(moves, -1)


def assert_exact(
    got: Tensor,
    case: tuple[Tensor, Tensor, Tensor, KeyValueMeans],
    shape: tuple[int, ...],
    rounding: float,
) -> None:
    expected, moves = exact(*case, *shape[4:])
    assert got.dtype is torch.float32
    assert got.shape == expected.shape
    excess = (got - expected).abs() / (rounding * (moves + expected))
    # Written so that NaN fails.
    assert bool((excess <= 1).all()), f"{float(excess.max()):.3g} times what rounding explains"


def blocks_of(shape: tuple[int, ...]) -> dict[str, int]:
    return {"block_q": shape[4], "block_kv": shape[5]}


@pytest.mark.parametrize("tangents", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_are_those_of_float64(generator, shape, tangents):
    case = draw(shape, generator, tangents=tangents)
    assert_exact(block_errors(*case, **blocks_of(shape)), case, shape, FLOAT32)


def triton_errors(case, shape):
    device, dtype = case[0].device, case[0].dtype
    if why_no_triton(device):
        pytest.skip("no triton here")
    if device.type == "cpu" and dtype is torch.bfloat16:
        pytest.skip("the interpreter multiplies bfloat16 as integers")
    from vidsparse.kernels.triton_block_errors import block_errors_triton

    got = block_errors_triton(*case, **blocks_of(shape))
    rounding = FLOAT32 if dtype is torch.float32 else torch.finfo(dtype).eps / 2
    assert_exact(got, case, shape, rounding)
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_errors_are_those_of_float64(generator, shape, dtype):
    triton_errors(draw(shape, generator, dtype), shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_takes_plain_means(generator, dtype):
    triton_errors(draw(SHAPES[0], generator, dtype, tangents=False), SHAPES[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constant_blocks_leave_no_error(generator, dtype):
    case = draw(SHAPES[0], generator, dtype, noise=0.0, tangents=False)
    most = float(triton_errors(case, SHAPES[0]).max())
    # Nothing but rounding of weights and of logits, which moves an output between values. float32
    # logits of 10 round by some epsilons, their hardware exponentials by two.
    apart = float(torch.pdist(case[2][0, 0].double()).max())
    assert most <= (16 if dtype is torch.float32 else 1) * torch.finfo(dtype).eps * apart


def test_weights_below_the_range_of_float16_count(generator):
    # All blocks but the first weigh e^-16 of it, so that each of their keys weighs 2e-9.
    shape = (1, 1, 200, 64, 64, 64)
    q, k, v, _ = draw(shape, generator, torch.float16)
    q[..., 0], k[..., 0], k[:, :, :64, 0] = 8, 0, 16
    mask = BlockMask.full(block_q=64, block_kv=64, seq_q=200, seq_kv=200, device=q.device)
    case = (q, k, v, key_value_means(k, v, mask))
    small = triton_errors(case, shape)[..., 1:]
    assert float(small.min()) > 0
    assert float(small.max()) < 1e-4


def test_heads_in_parts_give_the_same(generator, monkeypatch):
    case = draw(SHAPES[2], generator)
    together = block_errors(*case, **blocks_of(SHAPES[2]))
    sizes = dict.fromkeys(("cpu", "cuda"), 1)
    monkeypatch.setattr("vidsparse.kernels.block_errors._BYTES", sizes)
    torch.testing.assert_close(block_errors(*case, **blocks_of(SHAPES[2])), together)


def test_blocks_that_do_not_fit_are_refused():
    x = torch.zeros(1, 1, 100, 16)
    means = KeyValueMeans(x[:, :, :4], x[:, :, :4], torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match="block_q=0, block_kv=32 must be at least 1"):
        block_errors(x, x, x, means, block_q=0, block_kv=32)
    with pytest.raises(ValueError, match=r"100 keys in blocks of 16 have \(1, 1, 7, 16\)"):
        block_errors(x, x, x, means, block_q=32, block_kv=16)


@pytest.mark.gpu
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("blocks", [(128, 128), (64, 64), (128, 64)], ids=str)
def test_errors_of_a_long_sequence(gpu_generator, D, blocks):
    shape = (1, 2, 4200, D, *blocks)
    case = draw(shape, gpu_generator, torch.bfloat16)
    got = triton_errors(case, shape)
    assert torch.equal(block_errors(*case, **blocks_of(shape)), got)
