import itertools

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from vidsparse.kernels.backends import why_no_triton
from vidsparse.kernels.kmeans import kmeans

POINTS = torch.tensor([[0.0, 0], [0, 1], [10, 0], [10, 1], [5, 5]])
CENTRES = torch.tensor([[0.0, 0], [10, 0], [100, 100]])


def heads(x: Tensor, device: torch.device) -> Tensor:
    return x[None, None].to(device)


def inertia(x: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    own = centroids.gather(2, labels.long()[..., None].expand(x.shape))
    return (x - own).square().sum()


def test_tie_goes_to_the_lowest_and_empty_keeps_its_centroid(generator: torch.Generator) -> None:
    device = generator.device
    result = kmeans(heads(POINTS, device), 3, iterations=1, init=heads(CENTRES, device))
    assert result.labels.tolist() == [[[0, 0, 1, 1, 0]]]
    assert result.sizes.tolist() == [[[3, 2, 0]]]
    expected = torch.tensor([[5 / 3, 2], [10, 0.5], [100, 100]])
    torch.testing.assert_close(result.centroids[0, 0].cpu(), expected)


def test_centroids_are_the_means_of_their_tokens(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 203, 16, generator=generator, device=generator.device)
    labels, centroids, sizes, tokens = kmeans(x, 10, iterations=3)
    assert torch.equal(tokens.order.long(), labels.argsort(dim=-1, stable=True))
    assert torch.equal(tokens.offsets.diff(), sizes)
    one_hot = torch.nn.functional.one_hot(labels.long(), 10).float()
    assert torch.equal(sizes.long(), one_hot.sum(2).long())
    means = one_hot.mT @ x / sizes[..., None]
    torch.testing.assert_close(centroids[sizes > 0], means[sizes > 0], rtol=1e-4, atol=1e-4)


def test_inertia_never_rises(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 300, 8, generator=generator, device=generator.device)
    values = [inertia(x, *kmeans(x, 12, iterations=n)[:2]) for n in range(1, 7)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(values))


def test_one_cluster_is_the_mean(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 50, 8, generator=generator, device=generator.device)
    torch.testing.assert_close(kmeans(x, 1, iterations=1).centroids, x.mean(2, keepdim=True))


def test_as_many_clusters_as_tokens(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 20, 8, generator=generator, device=generator.device)
    result = kmeans(x, 20, iterations=2)
    assert (result.sizes == 1).all()


def test_duplicate_init_leaves_the_second_empty(generator: torch.Generator) -> None:
    x = torch.randn(1, 1, 50, 8, generator=generator, device=generator.device)
    init = x[:, :, [0, 0, 1]]
    result = kmeans(x, 3, iterations=1, init=init)
    assert result.sizes[0, 0, 1] == 0
    assert result.centroids.isfinite().all()


def test_no_iterations_only_assign(generator: torch.Generator) -> None:
    x = torch.randn(1, 1, 50, 8, generator=generator, device=generator.device)
    result = kmeans(x, 5, iterations=0, init=x[:, :, :5])
    assert torch.equal(result.labels.long(), torch.cdist(x, x[:, :, :5]).argmin(-1))
    assert torch.equal(result.centroids, x[:, :, :5])


def test_warm_start_from_converged_centroids_changes_nothing(generator: torch.Generator) -> None:
    x = torch.randn(1, 1, 100, 4, generator=generator, device=generator.device)
    first = kmeans(x, 4, iterations=50)
    again = kmeans(x, 4, iterations=1, init=first.centroids)
    assert torch.equal(first.labels, again.labels)


def test_same_seed_same_clusters(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 203, 8, generator=generator, device=generator.device)
    first, second, other = (kmeans(x, 9, iterations=2, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.centroids, second.centroids)
    assert not torch.equal(first.centroids, other.centroids)


def test_transposed_tokens_give_the_same(generator: torch.Generator) -> None:
    x = torch.randn(1, 60, 3, 8, generator=generator, device=generator.device).transpose(1, 2)
    init = x[:, :, :7]
    strided, contiguous = (kmeans(t, 7, iterations=2, init=init) for t in (x, x.contiguous()))
    assert torch.equal(strided.labels, contiguous.labels)


def test_agrees_with_scikit_learn(generator: torch.Generator) -> None:
    x = torch.randn(1, 1, 400, 6, generator=generator, device=generator.device)
    init = x[:, :, :8]
    ours = kmeans(x, 8, iterations=200, init=init)
    theirs = KMeans(8, init=init[0, 0].cpu().numpy(), n_init=1, max_iter=500, tol=0).fit(
        x[0, 0].cpu().numpy()
    )
    assert float(inertia(x, ours.labels, ours.centroids)) == pytest.approx(theirs.inertia_, 1e-3)


def test_triton_agrees_with_torch(generator: torch.Generator) -> None:
    if why_no_triton(generator.device):
        pytest.skip("no Triton here")
    from vidsparse.kernels.triton_kmeans import kmeans_triton

    x = torch.randn(1, 2, 203, 40, generator=generator, device=generator.device)
    # On the CPU kmeans takes the torch path.
    ours = kmeans(x.cpu(), 70, iterations=1, init=x[:, :, :70].cpu())
    ours = ours._replace(labels=ours.labels.to(x.device), centroids=ours.centroids.to(x.device))
    labels, centroids, sizes, tokens = kmeans_triton(x, x[:, :, :70], 1)
    assert torch.equal(tokens.order.long(), labels.argsort(dim=-1, stable=True))
    assert torch.equal(tokens.offsets.diff(), sizes)
    assert (labels != ours.labels).float().mean() < 0.01
    if torch.equal(labels, ours.labels):
        torch.testing.assert_close(centroids, ours.centroids, rtol=1e-4, atol=1e-4)
    assert int(sizes.sum()) == 2 * 203


@pytest.mark.gpu
def test_bf16_kmeans_on_the_gpu_is_right_deterministic_and_never_waits(
    gpu_generator: torch.Generator,
) -> None:
    x = torch.randn(1, 4, 5000, 128, generator=gpu_generator, device="cuda").bfloat16()
    init = x[:, :, :300].float()
    kmeans(x, 300, iterations=1, init=init)
    torch.cuda.set_sync_debug_mode("error")
    try:
        first = kmeans(x, 300, iterations=3, init=init)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for _ in range(5):
        again = kmeans(x, 300, iterations=3, init=init)
        assert torch.equal(first.labels, again.labels)
        assert torch.equal(first.centroids, again.centroids)
    assigned = kmeans(x, 300, iterations=0, init=init).labels
    distances = torch.cdist(x.double(), init.double())
    best = distances.min(-1).values
    chosen = distances.gather(-1, assigned.long()[..., None])[..., 0]
    # Equal up to rounding of the products.
    assert ((chosen - best) <= 1e-3 * best).all()
    one_hot = torch.nn.functional.one_hot(first.labels.long(), 300).double()
    assert torch.equal(first.sizes.long(), one_hot.sum(2).long())
    means = one_hot.mT @ x.double() / first.sizes[..., None]
    kept = first.sizes > 0
    torch.testing.assert_close(first.centroids[kept].double(), means[kept], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("S", "K", "D"), [(1, 1, 128), (63, 7, 64), (257, 64, 128), (1000, 65, 96), (5000, 300, 128)]
)
@pytest.mark.parametrize("clusters", [64, 128])
def test_hopper_assignment_is_nearest(
    gpu_generator: torch.Generator, S: int, K: int, D: int, clusters: int
) -> None:
    from vidsparse.kernels.hopper_kmeans import AssignConfig, assign_gluon, can_assign_gluon
    from vidsparse.kernels.triton_kmeans import round_centroids

    x, centroids = (torch.randn(2, 3, n, D, generator=gpu_generator, device="cuda") for n in (S, K))
    x = x.bfloat16()
    if not can_assign_gluon(x):
        pytest.skip("no Gluon here")
    # Shifted heads: all scores positive, or all negative.
    centroids += torch.tensor([0.0, 0.3, 3.0], device="cuda")[:, None, None]
    rounded, half_norms = round_centroids(centroids, x.dtype)
    config = AssignConfig(clusters, 512 // clusters, 240, 168)
    labels = assign_gluon(x, rounded, half_norms, config).long()
    assert int(labels.min()) >= 0
    assert int(labels.max()) < K
    c = rounded.double()
    half = c.square().sum(-1)[:, :, None] / 2
    scores = x.double() @ c.mT - half
    gap = scores.amax(-1) - scores.gather(-1, labels[..., None])[..., 0]
    # Twice 2^-18 of twice what a score can be, and sums in float32.
    size = x.double().norm(dim=-1) * c.norm(dim=-1).amax(-1)[..., None] + half.amax(-1)
    assert (gap <= 2**-15 * size).all()


@pytest.mark.gpu
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_equal_centroids_on_the_gpu_leave_all_but_the_lowest_empty(
    gpu_generator: torch.Generator, shift: float
) -> None:
    x = torch.randn(1, 2, 3000, 128, generator=gpu_generator, device="cuda")
    # Far from the origin no token scores above zero. Twins in a thread, in a tile and across tiles.
    init = x[:, :, :50] + shift
    twins = torch.tensor([0, 1, 1, 1, 0, 7, 12, 40], device="cuda")
    init = torch.cat([init, init[:, :, twins], init], 2)
    labels = kmeans(x.bfloat16(), 108, iterations=0, init=init).labels
    assert int(labels.max()) < 50
    assert labels.unique().numel() > 10


@pytest.mark.gpu
def test_labels_of_nan_tokens_on_the_gpu_stay_in_range(gpu_generator: torch.Generator) -> None:
    x = torch.randn(1, 1, 300, 128, generator=gpu_generator, device="cuda").bfloat16()
    init = x[:, :, :70].float()
    x[:, :, 100:110, 3] = float("nan")
    x[:, :, 110:120, 3] = float("inf")
    labels = kmeans(x, 70, iterations=0, init=init).labels
    assert int(labels.min()) >= 0
    assert int(labels.max()) < 70
    assert torch.equal(labels[0, 0, :70].cpu(), torch.arange(70, dtype=torch.int32))


@pytest.mark.parametrize(
    ("clusters", "iterations", "init", "message"),
    [
        (0, 1, None, r"must lie in 1\.\.5"),
        (6, 1, None, r"must lie in 1\.\.5"),
        (2, -1, None, "at least 0"),
        (2, 1, torch.zeros(1, 1, 3, 2), "init has shape"),
    ],
)
def test_bad_parameters_are_refused(
    clusters: int, iterations: int, init: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kmeans(POINTS[None, None], clusters, iterations=iterations, init=init)
