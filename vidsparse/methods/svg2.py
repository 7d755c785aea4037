"""SVG2: cluster queries and keys by meaning, attend cluster to cluster."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.block_mask import RaggedBlockMask
from vidsparse.kernels.kmeans import Clusters, kmeans
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SearchRange, SparseMethod, register
from vidsparse.methods.budget import Budget, BudgetKind, check_density
from vidsparse.methods.clusters import (
    keep_top_p,
    log_cluster_mass,
    log_key_weight,
    spread_tokens,
)
from vidsparse.methods.finite_check import FiniteCheck
from vidsparse.methods.head_rates import text_share
from vidsparse.plan import AttentionPlan, CallSite

# The authors' 300 query and 1000 key clusters were chosen for Wan at 720p.
_PAPER_TOKENS = 75_600
_PAPER_Q_CLUSTERS = 300
_MAX_K_CLUSTERS = 1000
_TOKENS_PER_K_CLUSTER = 64

Heads = Literal["shared", "equal", "rows"]
_BUDGETS: dict[Heads, BudgetKind] = {"shared": "shared", "equal": "flat", "rows": "row"}
# Text may need all of a density: each query cluster's best key cluster then stays alone.
_LEAST_DENSITY = 1e-9


@dataclass
class Svg2State:
    """What one layer and branch, or all branches of a layer, carry from step to step.

    Attributes:
        q_centroids: (B, H, Nq, D), where the next clustering of queries starts.
        k_centroids: (B, H, Nk, D), the same for keys.
        plans: step, density and plan of each branch, kept when plans are reused.
        check: pending answer about NaN.
    """

    q_centroids: Tensor | None = None
    k_centroids: Tensor | None = None
    plans: dict[int, tuple[int, float, AttentionPlan]] = field(default_factory=dict)
    check: FiniteCheck | None = None


@register
@dataclass(frozen=True)
class Svg2(SparseMethod):
    """Attend from clusters of similar queries to the clusters of keys that matter to them.

    Video queries and keys are clustered apart, per head, by k-means on the vectors after position
    embedding. Text stays out of the clusters: it attends to everything and everything to it.

    NaN in q or k raises an error that names layer and step: at once on the CPU; on a GPU, which the
    check never waits for, at once or at the first later step that finds the answer there.

    Two ways to choose: ``density`` keeps the clusters with the heaviest keys within a budget of
    token pairs; ``top_p`` is the paper's rule, whose density depends on the video.

    Attributes:
        top_p: attention mass every query cluster recovers, in (0, 1], instead of ``density``.
        min_ratio: with ``top_p``, share of the key clusters each query cluster keeps, in [0, 1].
        heads: without ``top_p``, "equal" gives every head the same budget, "shared" lets the heads
            of a layer compete for one, "rows" gives every query cluster the same number of keys.
        q_clusters: query clusters; None chooses from the number of video tokens.
        k_clusters: key clusters; None chooses from the number of video tokens.
        first_iterations: k-means iterations at a layer's first sparse step, at least 1.
        iterations: k-means iterations at later steps, which start from the step before; at least 1.
        refresh_every: steps a plan serves, at least 1.
        share_branches: start the clusters of each branch of the guidance from those of the branch
            before, as the authors do; each still plans for itself. Without effect on pipelines
            that run both branches as one batch, whose rows always have their own.

    Raises:
        UsageError: a parameter is out of range.

    Source: SVG2, arXiv:2505.18875.
    """

    name: ClassVar[str] = "svg2"
    summary: ClassVar[str] = "k-means clusters of queries and keys, best clusters kept"
    source: ClassVar[str] = "SVG2, arXiv:2505.18875"

    top_p: float | None = None
    min_ratio: float = 0.0
    heads: Heads = "equal"
    q_clusters: int | None = None
    k_clusters: int | None = None
    first_iterations: int = 20
    iterations: int = 2
    refresh_every: int = 1
    share_branches: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps every cluster")
        if not 0 <= self.min_ratio <= 1:
            raise UsageError(f"min_ratio={self.min_ratio} must lie in [0, 1]")
        if self.min_ratio > 0 and self.top_p is None:
            raise UsageError(f"min_ratio={self.min_ratio} needs top_p; give both or neither")
        if self.heads not in _BUDGETS:
            raise UsageError(f"heads={self.heads!r} is unknown; use 'equal', 'rows' or 'shared'")
        counts = ("first_iterations", "iterations", "refresh_every", "q_clusters", "k_clusters")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")

    def init_state(self) -> Svg2State:
        """Return a state without centroids: the next call clusters from scratch."""
        return Svg2State()

    def state_key(self, site: CallSite) -> Hashable:
        """Share a state among the branches of a layer when asked to."""
        shared = site.transformer, site.layer
        return shared if self.share_branches else super().state_key(site)

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan:
        """Cluster, score, choose; see the base class.

        Raises:
            UsageError: more clusters than video tokens, or a density that text alone exceeds.
            ValueError: q or k holds NaN or infinity.
        """
        plans: dict[int, tuple[int, float, AttentionPlan]] = state.plans
        if site.branch in plans:
            step, density, last = plans[site.branch]
            # Other bands of a preset ask for other densities.
            if density == self.density and 0 <= site.step - step < self.refresh_every:
                return last
        plan = self._new_plan(q, k, layout, site, state)
        if self.refresh_every > 1:
            plans[site.branch] = site.step, self.density, plan
        return plan

    def instead_of_density(self) -> str | None:
        """Name ``top_p`` where it decides."""
        return None if self.top_p is None else f"top_p={self.top_p}"

    def search_space(self) -> dict[str, SearchRange]:
        """Return the parameters ``tune`` may vary."""
        return {
            "density": SearchRange((0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)),
            "heads": SearchRange(("equal", "shared")),
            "refresh_every": SearchRange((4, 2, 1)),
            "compensate": SearchRange((False, True)),
        }

    def cluster_counts(self, layout: VideoLayout) -> tuple[int, int]:
        """Return the numbers of query and key clusters.

        The defaults are the authors' at 720p. Query clusters shrink with the root of the tokens
        (200 at 480p, as in the authors' scripts), key clusters hold about 64 tokens.

        Raises:
            UsageError: more clusters than video tokens were asked for.
        """
        S = layout.video_tokens
        q_default = round(_PAPER_Q_CLUSTERS * (S / _PAPER_TOKENS) ** 0.5)
        k_default = min(_MAX_K_CLUSTERS, round(S / _TOKENS_PER_K_CLUSTER))
        return (
            _checked_count("q_clusters", self.q_clusters, q_default, S),
            _checked_count("k_clusters", self.k_clusters, k_default, S),
        )

    def _new_plan(
        self, q: Tensor, k: Tensor, layout: VideoLayout, site: CallSite, state: Svg2State
    ) -> AttentionPlan:
        num_q, num_k = self.cluster_counts(layout)
        video = slice(layout.text_before, layout.video_end)
        q_clusters = self._cluster(q[:, :, video], num_q, state.q_centroids)
        k_clusters = self._cluster(k[:, :, video], num_k, state.k_centroids)
        # Kept in the model's precision: they only start the next clustering.
        state.q_centroids = q_clusters.centroids.to(q.dtype)
        state.k_centroids = k_clusters.centroids.to(k.dtype)
        self._watch(site, state, q_clusters.centroids, k_clusters.centroids)
        mask = self._choose(q_clusters, k_clusters, layout)
        return _cluster_plan(mask, q_clusters, k_clusters, layout)

    def _watch(self, site: CallSite, state: Svg2State, *centroids: Tensor) -> None:
        # A pending answer is kept: the GPU may lag several steps behind.
        if state.check is None:
            state.check = FiniteCheck.start(site, *centroids)
        if state.check.raise_if_known():
            state.check = None

    def _cluster(self, x: Tensor, count: int, warm: Tensor | None) -> Clusters:
        if warm is None:
            return kmeans(x, count, iterations=self.first_iterations, init=spread_tokens(x, count))
        return kmeans(x, count, iterations=self.iterations, init=warm)

    def _choose(self, q: Clusters, k: Clusters, layout: VideoLayout) -> Tensor:
        log_mass = log_cluster_mass(q.centroids, k.centroids, k.sizes)
        if self.top_p is not None:
            return keep_top_p(log_mass, self.top_p, min_ratio=self.min_ratio)
        budget = Budget(_BUDGETS[self.heads], video_density(self.density, layout))
        weight = log_key_weight(log_mass, k.sizes)
        return budget.select(weight, None, q.sizes.long(), k.sizes.long())


def video_density(density: float, layout: VideoLayout) -> float:
    """Return the share of video-to-video pairs that a density leaves after all pairs with text.

    Args:
        density: share of all query-key pairs, in (0, 1].
        layout: the sequence.

    Raises:
        UsageError: the pairs with text alone exceed the density.
    """
    text = text_share(layout)
    check_density(density, text, f"{layout.text_tokens} text tokens")
    return max((density - text) / (1 - text), _LEAST_DENSITY)


def _checked_count(field: str, asked: int | None, default: int, tokens: int) -> int:
    if asked is None:
        return max(1, min(default, tokens))
    if asked > tokens:
        raise UsageError(f"{field}={asked} exceeds the {tokens} video tokens; use at most {tokens}")
    return asked


def _cluster_plan(mask: Tensor, q: Clusters, k: Clusters, layout: VideoLayout) -> AttentionPlan:
    """Join (B, H, Nq, Nk) kept clusters and the text, one block each side, to a plan."""
    q_order, k_order = (_full_order(c, layout) for c in (q, k))
    before, after = int(layout.text_before > 0), int(layout.text_after > 0)
    mask = torch.nn.functional.pad(mask, (before, after, before, after), value=True)
    S = layout.num_tokens
    q_offsets, k_offsets = (_full_offsets(c.tokens.offsets, layout) for c in (q, k))
    ragged = RaggedBlockMask(q_offsets, k_offsets, mask, S, S)
    return AttentionPlan(mask=ragged, q_order=q_order, kv_order=k_order)


def _full_order(clusters: Clusters, layout: VideoLayout) -> Tensor:
    order = clusters.tokens.order
    if not layout.text_tokens:
        return order
    text = torch.arange(layout.num_tokens, dtype=torch.int32, device=order.device)
    text = text.expand(*order.shape[:2], -1)
    parts = (text[..., : layout.text_before], order + layout.text_before)
    return torch.cat((*parts, text[..., layout.video_end :]), -1)


def _full_offsets(offsets: Tensor, layout: VideoLayout) -> Tensor:
    if layout.text_before:
        offsets = torch.nn.functional.pad(offsets + layout.text_before, (1, 0), value=0)
    if layout.text_after:
        offsets = torch.nn.functional.pad(offsets, (0, 1), value=layout.num_tokens)
    return offsets
