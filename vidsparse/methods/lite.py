"""LiteAttention: tiles that weigh nothing are skipped, and stay skipped from step to step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.kernels.block_sparse_attention import AttentionOutput
from vidsparse.kernels.tile_drop import drop_light_tiles, tile_weights
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import Phase, SearchRange, SparseMethod, build_method, register
from vidsparse.methods.budget import Budget, BudgetKind
from vidsparse.methods.lite_start import Order, all_tiles, check_cut, seeded_tiles
from vidsparse.methods.lite_state import LiteState, Tiles
from vidsparse.methods.lite_thresholds import (
    Criterion,
    ThresholdTable,
    check_criterion,
    check_threshold,
)
from vidsparse.methods.lite_weights import (
    RUNNING,
    group_lse,
    largest_drift,
    spread_lse,
    tile_scales,
)
from vidsparse.plan import AttentionPlan, CallSite

Heads = Literal["equal", "shared"]
_BUDGETS: dict[Heads, BudgetKind] = {"equal": "flat", "shared": "shared"}


@register
@dataclass(frozen=True)
class Lite(SparseMethod):
    """Let the attending kernel itself say which tiles weigh nothing; skip them from then on.

    The first sparse call of a layer and branch keeps every tile. While it attends, the kernel
    notes what each tile held, and the next call leaves out those below the threshold. A skipped
    tile is not looked at again before the generation ends or a refresh falls due. Text, and each
    query block's own neighbourhood, always stay. Nothing is planned: the only cost is what the
    statistic takes inside the kernel, and the lists.

    Three criteria: "previous_mass" is the tile's share of attention against the log-sum-exp of the
    step before, which takes a second call on every tile; "running_mass" is its share up to and
    including it in the kernel's order, at least its true share and, as the direction alternates,
    at most twice that after two calls; "running_max" is the paper's, the largest logit of the tile
    against the running maximum. Running ones depend on the order, which makes them poor at ranking
    tiles for a density. Both masses bound the error of the output: leaving out a share m moves an
    output by at most 2 m times the longest value vector.

    Attributes:
        density: without thresholds, share of query-key pairs kept once all tiles were weighed,
            text and own blocks included, in (0, 1]: the lightest tiles go, once.
        heads: without thresholds, "equal" gives every head the same budget, "shared" lets the heads
            of a layer compete for one.
        criterion: "previous_mass", "running_mass" or "running_max".
        threshold: tiles at or below go, instead of ``density``. For masses a multiple of the even
            share of attention in [0, 1]: at most this share of a row's attention is ever skipped.
            For "running_max" a negative log2 gap, such as -10.
        thresholds: a table of them by layer and step, as ``vidsparse calibrate`` makes.
        refresh_every: steps after which all tiles are looked at again, at least 2; None for never.
        seed: name of a method whose first mask the tiles start from, such as "draft" or "adaspa":
            few-step models gain from the first call on.
        seed_density: what the seed keeps, in (0, 1]; at a refresh again.
        order: "raster" cuts tiles from the natural token order, "compact" from a walk that keeps
            neighbours in the picture together; a seed brings its own.
        frames: frames that share a compact tile, at least 1.
        blocks: (query, key) tokens per tile; None takes the kernels' choice. Compact tiles are as
            large as the smaller one.

    Raises:
        UsageError: a parameter is out of range.

    Source: LiteAttention, arXiv:2511.11062; masses, bounds, seeds and refreshes are ours.
    """

    name: ClassVar[str] = "lite"
    summary: ClassVar[str] = "tiles found light while attending stay skipped"
    source: ClassVar[str] = "LiteAttention, arXiv:2511.11062"

    criterion: Criterion = "previous_mass"
    heads: Heads = "equal"
    threshold: float | None = None
    thresholds: Mapping[str, Any] | ThresholdTable | None = None
    refresh_every: int | None = None
    seed: str | None = None
    seed_density: float = 0.5
    order: Order = "raster"
    frames: int = 1
    blocks: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_criterion(self.criterion)
        if self.heads not in _BUDGETS:
            raise UsageError(f"heads={self.heads!r} is unknown; use 'equal' or 'shared'")
        if self.threshold is not None:
            check_threshold(self.threshold, self.criterion)
        if self.thresholds is not None:
            self._take_table(ThresholdTable.from_values(self.thresholds))
        if self.refresh_every is not None and self.refresh_every < 2:
            raise UsageError(
                f"refresh_every={self.refresh_every} must be at least 2: a refresh keeps all tiles"
            )
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(self.blocks))  # JSON gives lists
        check_cut(self.order, self.frames)
        if not 0 < self.seed_density <= 1:
            raise UsageError(f"seed_density={self.seed_density} must lie in (0, 1]")
        if self.seed is not None:
            self._seed()

    def init_state(self) -> LiteState:
        """Return a state without tiles: the next call looks at all of them, or asks the seed."""
        return LiteState(seed=None if self.seed is None else self._seed().init_state())

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Keep what is left, and have the kernel look at it; see the base class.

        Raises:
            UsageError: the thresholds are for another model or tile size, the density is less than
                what always stays, or the seed's blocks are of unequal size.
        """
        if self.density == 1 and self.instead_of_density() is None:
            return None
        if state.tiles is None or self._begins(state.tiles, layout, site):
            seeded = None
            if self.seed is not None:
                seeded = self._seed().plan(q, k, v, layout, site, self._seed_state(state))
                if seeded is None or seeded.dense_reason is not None:
                    return seeded
            state.tiles = self._first_tiles(q, layout, site, seeded)
        return self._plan(state.tiles)

    def observe(
        self, output: AttentionOutput, plan: AttentionPlan, site: CallSite, state: Any
    ) -> None:
        """Drop the tiles that weigh too little; see the base class."""
        tiles: Tiles | None = state.tiles
        if tiles is None:
            if self.seed is not None:
                self._seed().observe(output, plan, site, state.seed)
            return
        if self._is_settled(tiles):
            return
        if output.block_stats is not None:
            self._drop(output.block_stats, output.lse, plan, tiles, site)
        if self.criterion == "previous_mass" and output.lse is not None:
            tiles.lse = None if self._is_settled(tiles) else group_lse(output.lse)
        tiles.backwards = not tiles.backwards

    def instead_of_density(self) -> str | None:
        """Name the threshold where there is one."""
        if self.thresholds is not None:
            return "thresholds"
        return None if self.threshold is None else f"threshold={self.threshold}"

    def phases(self, num_steps: int, first_step: int) -> tuple[Phase, ...]:
        """Tell the looks at every tile from the steps that skip; only a density has the two."""
        if self.instead_of_density() is not None or self.seed is not None:
            return ()
        every = self.refresh_every or num_steps
        length = 2 if self.criterion == "previous_mass" else 1
        steps = range(first_step, num_steps)
        looks = tuple(s for s in steps if (s - first_step) % every < length)
        return (
            Phase("look", looks, searches=True),
            Phase("skip", tuple(s for s in steps if s not in looks)),
        )

    def search_space(self) -> dict[str, SearchRange]:
        """Vary the density, the order of the tiles, and how long skipped tiles stay skipped."""
        return {
            "density": SearchRange((0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)),
            "heads": SearchRange(("equal", "shared")),
            "order": SearchRange(("raster", "compact")),
            "refresh_every": SearchRange((None, 10, 5)),
        }

    def _take_table(self, table: ThresholdTable) -> None:
        if self.threshold is not None:
            raise UsageError("threshold and thresholds are both given; give one")
        if table.criterion != self.criterion:
            raise UsageError(
                f"the thresholds are for criterion {table.criterion!r}, not {self.criterion!r}; "
                "give the same, or calibrate with this one"
            )
        object.__setattr__(self, "thresholds", table)

    def _seed(self) -> SparseMethod:
        if self.seed == self.name:
            raise UsageError("seed='lite' cannot start from itself; use draft or adaspa")
        return build_method(str(self.seed), {"density": self.seed_density})

    def _seed_state(self, state: LiteState) -> Any:
        if state.tiles is not None:  # a refresh: the seed starts anew too
            state.tiles, state.seed = None, self._seed().init_state()
        return state.seed

    def _begins(self, tiles: Tiles, layout: VideoLayout, site: CallSite) -> bool:
        since = site.step - tiles.step
        due = self.refresh_every is not None and since >= self.refresh_every
        # What was cut off for a smaller density is gone.
        more = tiles.cut_to is not None and self.density > tiles.cut_to
        return due or more or since < 0 or layout != tiles.layout

    def _is_settled(self, tiles: Tiles) -> bool:
        return tiles.cut_to is not None and self.density >= tiles.cut_to

    def _first_tiles(
        self, q: Tensor, layout: VideoLayout, site: CallSite, seeded: AttentionPlan | None
    ) -> Tiles:
        if seeded is None:
            tiles = all_tiles(
                q, layout, site.step, blocks=self.blocks, order=self.order, frames=self.frames
            )
        else:
            tiles = seeded_tiles(q, layout, site.step, seeded, str(self.seed))
        if isinstance(self.thresholds, ThresholdTable):
            self.thresholds.check_blocks(tiles.blocks)
        elif self.threshold is None:
            tiles.geometry().check(self.density)
        return tiles

    def _plan(self, tiles: Tiles) -> AttentionPlan:
        running, lse = None, None
        if not self._is_settled(tiles):
            running = RUNNING.get(self.criterion)
            lse = None if tiles.lse is None else spread_lse(tiles.lse, tiles.layout.num_tokens)
        return AttentionPlan(
            tiles.mask(),
            tiles.q_order,
            tiles.kv_order,
            stats_lse=lse,
            running=running,
            dense_reason="lite looks at every tile" if tiles.full else None,
            error_bound=None if self._bound_is_unknown() else tiles.error_bound(),
        )

    def _bound_is_unknown(self) -> bool:
        # Nobody weighed what the seed left out; means in place of tiles change the sums.
        return self.seed is not None or self.compensate

    def _drop(
        self, stats: Tensor, lse: Tensor | None, plan: AttentionPlan, tiles: Tiles, site: CallSite
    ) -> None:
        geometry, drift = tiles.geometry(), None
        if plan.stats_lse is not None and lse is not None:
            drift = largest_drift(plan.stats_lse, lse, tiles.blocks[0])
        scales = tile_scales(self.criterion, stats, geometry, drift)
        threshold = self._threshold(site)
        if threshold is not None:
            tiles.take(*drop_light_tiles(tiles.bits, stats, geometry.forced, threshold, scales))
            return
        weight, held = tile_weights(stats, scales)
        sizes, floor = (geometry.q.sizes, geometry.kv.sizes), not geometry.covers_rows
        budget = Budget(_BUDGETS[self.heads], self.density)
        kept = budget.select(weight, geometry.forced, *sizes, floor=floor)
        tiles.drop(~kept, held)
        tiles.cut_to = self.density

    def _threshold(self, site: CallSite) -> float | None:
        if isinstance(self.thresholds, ThresholdTable):
            return self.thresholds.of(site)
        return self.threshold
