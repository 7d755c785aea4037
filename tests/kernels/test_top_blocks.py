import pytest
import torch

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.top_blocks import keep_top_weight


def slow(scores: torch.Tensor, weights: torch.Tensor, target: float) -> torch.Tensor:
    kept, held = torch.zeros(len(scores), dtype=torch.bool), 0
    for i in sorted(range(len(scores)), key=lambda i: -float(scores[i])):
        if held >= target:
            break
        kept[i] = True
        held += int(weights[i])
    return kept


def draw(seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    R, N = (int(torch.randint(1, top, (), generator=generator)) for top in (4, 300))
    scores = torch.randn(R, N, generator=generator)
    if seed % 2:
        scores = (2 * scores).round()
    if seed % 3 == 0:
        scores[:, ::3], scores[:, 1::5] = torch.inf, -torch.inf
    shared = R if seed % 4 == 0 else 1
    weights = torch.randint(int(seed % 5 == 0), 20, (shared, N), generator=generator)
    share = torch.rand(shared, 1, generator=generator, dtype=torch.float64)
    targets = weights.sum(-1, keepdim=True) * share
    return scores.to(device), weights.to(device), targets.to(device)


@pytest.mark.parametrize("seed", range(24))
def test_keeps_the_best_until_the_target(generator: torch.Generator, seed: int) -> None:
    scores, weights, targets = draw(seed, generator.device)
    kept = keep_top_weight(scores, weights, targets).cpu()
    for row, got in enumerate(kept):
        shared = min(row, len(weights) - 1)
        assert torch.equal(got, slow(scores[row].cpu(), weights[shared], float(targets[shared])))


@pytest.mark.parametrize("seed", range(8))
def test_forced_entries_are_infinite_and_stay(generator: torch.Generator, seed: int) -> None:
    scores, weights, targets = draw(seed, generator.device)
    forced = torch.rand(*scores.shape, device=generator.device, generator=generator) < 0.2
    forced = forced[:1] if seed % 2 else forced
    kept = keep_top_weight(scores, weights, targets, forced)
    first = keep_top_weight(scores.masked_fill(forced, torch.inf), weights, targets)
    assert torch.equal(kept, first | forced)
    assert torch.equal(
        keep_top_weight(scores, weights, 0 * targets, forced), forced.expand_as(kept)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("shared", [True, False, None])
def test_triton_takes_any_dtype_and_forced_entries(
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    split: bool,
    shared: bool | None,
) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels import triton_top_blocks
    from vidsparse.kernels.triton_top_blocks import keep_top_weight_triton

    monkeypatch.setattr(triton_top_blocks, "_SPLIT_BELOW", 256 if split else 0)
    device, N = generator.device, 9000
    scores = torch.randn(3, N, generator=generator, device=device)
    scores[:, ::7], scores[1] = 0.0, -scores[1].abs()
    scores = scores.to(dtype)
    weights = torch.randint(0, 99, (3, N), generator=generator, device=device)
    forced = None
    if shared is not None:
        forced = torch.rand(1 if shared else 3, N, generator=generator, device=device) < 0.05
    # The second row's target is less than its forced entries weigh, the third's more than all.
    share = torch.tensor([[0.4], [0.01], [1.1]], dtype=torch.float64, device=device)
    targets = weights.sum(-1, keepdim=True) * share
    got = keep_top_weight_triton(scores, weights, targets, forced)
    on_cpu = [None if x is None else x.cpu() for x in (scores, weights, targets, forced)]
    assert torch.equal(got.cpu(), keep_top_weight(*on_cpu))


@pytest.mark.parametrize("seed", range(12))
def test_triton_keeps_the_same_as_a_sort(generator: torch.Generator, seed: int) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels.triton_top_blocks import keep_top_weight_triton

    scores, weights, targets = draw(seed, generator.device)
    got = keep_top_weight_triton(scores, weights, targets)
    by_sort = keep_top_weight(scores.cpu(), weights.cpu(), targets.cpu())
    assert torch.equal(got.cpu(), by_sort)


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.3, 1.0])
@pytest.mark.parametrize("split", [True, False])
def test_triton_takes_rows_of_many_chunks(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, share: float, split: bool
) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels import triton_top_blocks
    from vidsparse.kernels.triton_top_blocks import keep_top_weight_triton

    monkeypatch.setattr(triton_top_blocks, "_SPLIT_BELOW", 256 if split else 0)
    N = 20_011
    scores = torch.randn(2, N, generator=generator, device=generator.device).mul(50).round()
    weights = torch.full((1, N), 128 * 128, device=generator.device)
    targets = weights.sum(-1, keepdim=True) * share
    got = keep_top_weight_triton(scores, weights, targets)
    assert torch.equal(got.cpu(), keep_top_weight(scores.cpu(), weights.cpu(), targets.cpu()))


@pytest.mark.parametrize("seed", range(12))
def test_split_rows_keep_the_same_as_a_sort(generator: torch.Generator, seed: int) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no triton here")
    from vidsparse.kernels.triton_split_top_blocks import keep_top_weight_split

    scores, weights, targets = draw(seed, generator.device)
    got = keep_top_weight_split(scores, weights.int(), targets.ceil().long())
    by_sort = keep_top_weight(scores.cpu(), weights.cpu(), targets.cpu())
    assert torch.equal(got.cpu(), by_sort)


@pytest.mark.gpu
def test_triton_at_the_size_of_a_720p_map() -> None:
    from vidsparse.kernels.triton_top_blocks import keep_top_weight_triton

    generator = torch.Generator("cuda").manual_seed(0)
    scores = torch.softmax(torch.randn(8, 591, 591, generator=generator, device="cuda"), -1)
    sizes = torch.full((591,), 128, device="cuda")
    sizes[-1] = 80
    pairs = (sizes[:, None] * sizes).view(1, -1)
    targets = pairs.sum(-1, keepdim=True) * 0.3
    got = keep_top_weight_triton(scores.view(8, -1), pairs, targets)
    assert torch.equal(
        got.cpu(), keep_top_weight(scores.view(8, -1).cpu(), pairs.cpu(), targets.cpu())
    )
