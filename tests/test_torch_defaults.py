"""Programs set torch's defaults for their own tensors: ours name what they need."""

from collections.abc import Iterator

import pytest
import torch

from vidsparse.attention import SparseAttention
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.block_sparse_attention import Impl, block_sparse_attention
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import build_method
from vidsparse.plan import CallSite

METHODS = ("svg", "svg2", "draft", "adaspa", "lite", "compensated", "random", "oracle-error")
# Sizes that no other test has put into a cache of geometries.
LAYOUTS = {name: VideoLayout(3, 10, 11 + i, text_after=3) for i, name in enumerate(METHODS)}


@pytest.fixture
def _float_defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def outputs(name: str) -> list[torch.Tensor]:
    layout, g = LAYOUTS[name], torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, layout.num_tokens, 16, generator=g, dtype=torch.float32, device="cpu")
        for _ in range(3)
    )
    attention = SparseAttention(build_method(name, {"density": 0.8}))
    sites = [CallSite("transformer", 0, 1, step, 20, 0.5, 0, -1) for step in range(10, 14)]
    return [attention(q, k, v, layout=layout, site=site) for site in sites]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("_float_defaults")
def test_another_default_dtype_or_device_changes_nothing(name: str) -> None:
    with torch.device("meta"):
        elsewhere = outputs(name)
    expected = outputs(name)
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        assert all(map(torch.equal, outputs(name), expected))
    assert all(map(torch.equal, elsewhere, expected))


@pytest.mark.parametrize("compensate", [False, True])
def test_float64_is_exact_on_a_cpu(compensate: bool) -> None:
    q, k, v = torch.randn(3, 1, 1, 180, 32, dtype=torch.float64).unbind()
    kept = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    mask = BlockMask.from_dense(kept, block_q=64, block_kv=64, seq_q=180, seq_kv=180)
    got = block_sparse_attention(q, k, v, mask, impl=Impl.TORCH, compensate=compensate)
    exact = block_sparse_attention(q, k, v, mask, impl=Impl.REFERENCE, compensate=compensate)
    # Logarithms of sizes are float32, which is off by 2^-24 of log 64.
    tolerance = 3e-7 if compensate else 1e-12
    torch.testing.assert_close(got.out, exact.out, atol=tolerance, rtol=0)
