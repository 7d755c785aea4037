"""Try LiteAttention's thresholds on a dense generation: what each would cost the output."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidsparse.attention import attend_and_learn
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod
from vidsparse.methods.lite import Lite
from vidsparse.methods.lite_state import LiteState
from vidsparse.methods.lite_thresholds import KEEP_ALL, ThresholdTable, segment_of
from vidsparse.plan import AttentionPlan, CallSite

# A layer of a transformer, and a segment of the steps.
Place = tuple[str, int, int]


@dataclass
class Trial:
    """What one threshold did at one place, summed over the calls.

    Attributes:
        error: sum of relative L1 errors of the output against the dense one, 0-dim.
        density: sum of kept shares, 0-dim.
        calls: how many, those that keep every tile left out.
    """

    error: Tensor | float = 0.0
    density: Tensor | float = 0.0
    calls: int = 0

    def add(self, error: Tensor, density: Tensor) -> None:
        """Count a call."""
        self.error, self.density = self.error + error, self.density + density
        self.calls += 1

    def means(self) -> tuple[float, float]:
        """Return the mean error and density, 0 and 1 without any call; waits for the device."""
        if not self.calls:
            return 0.0, 1.0
        return float(self.error) / self.calls, float(self.density) / self.calls


@dataclass
class ProbeState:
    """What one layer and branch carry: the tiles of each candidate.

    Attributes:
        segment: the one that the candidates belong to.
        trunk: tiles under the thresholds that are settled.
        trials: tiles under each candidate.
    """

    segment: int = -1
    trunk: LiteState = field(default_factory=LiteState)
    trials: tuple[LiteState, ...] = ()


@dataclass(frozen=True)
class LiteProbe(SparseMethod):
    """Leave every call dense, and attend beside it as LiteAttention would.

    The tokens are always those of the dense generation, so errors of earlier steps never hide
    behind sparse references.

    Attributes:
        lite: the method that is tried, without thresholds.
        candidates: thresholds to try, from the least that is skipped to the most.
        segments: equal parts of the steps.
        segment: the part that is tried now; in later ones nothing more is dropped.
        settled: thresholds of the parts before it.
        trials: what was found by place and candidate, later segments included.
        tile_sizes: (query, key) tokens of the tiles seen; a table needs one size.
        num_layers: by transformer.
    """

    name: ClassVar[str] = "lite-probe"
    summary: ClassVar[str] = "tries LiteAttention's thresholds on dense calls"
    source: ClassVar[str] = "control"

    lite: Lite = field(kw_only=True)
    candidates: tuple[float, ...] = field(kw_only=True)
    segments: int = field(kw_only=True)
    segment: int = field(kw_only=True)
    settled: dict[Place, float] = field(default_factory=dict, compare=False)
    trials: dict[Place, tuple[Trial, ...]] = field(default_factory=dict, compare=False)
    tile_sizes: set[tuple[int, int]] = field(default_factory=set, compare=False)
    num_layers: dict[str, int] = field(default_factory=dict, compare=False)

    def init_state(self) -> ProbeState:
        """Return a state without tiles."""
        return ProbeState()

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Try the candidates beside a dense call; returns None.

        Raises:
            UsageError: the number of steps is unknown, or the tiles differ from call to call.
        """
        now = segment_of(site, self.segments)
        self.num_layers[site.transformer] = site.num_layers
        if now < self.segment:
            place = (site.transformer, site.layer, now)
            chosen = self.settled.get(place, KEEP_ALL[self.lite.criterion])
            self._call(chosen, q, k, v, layout, site, state.trunk)
        else:
            self._try(now, q, k, v, layout, site, state)
        return None

    def table(self, target_error: float) -> ThresholdTable:
        """Return what is settled as a table.

        Raises:
            UsageError: no call was sparse, or the tiles were of several sizes.
        """
        if len(self.tile_sizes) != 1:
            raise UsageError(
                f"tiles of {len(self.tile_sizes)} sizes were seen; calibrate with one size of "
                "videos, and leave some steps sparse (dense_steps below 1, at least 256 tokens)"
            )
        keep_all = KEEP_ALL[self.lite.criterion]
        layers = {
            name: tuple(
                tuple(self.settled.get((name, i, s), keep_all) for s in range(self.segments))
                for i in range(count)
            )
            for name, count in self.num_layers.items()
        }
        (blocks,) = self.tile_sizes
        return ThresholdTable(self.lite.criterion, blocks, layers, target_error)

    def _try(
        self,
        now: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: VideoLayout,
        site: CallSite,
        state: Any,
    ) -> None:
        if state.segment != self.segment:
            state.segment = self.segment
            state.trials = tuple(_fork(state.trunk) for _ in self.candidates)
        place = (site.transformer, site.layer, now)
        trials = self.trials.setdefault(place, tuple(Trial() for _ in self.candidates))
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v).float()
        size = dense.abs().sum()
        for candidate, tiles, trial in zip(self.candidates, state.trials, trials, strict=True):
            threshold = candidate if now == self.segment else KEEP_ALL[self.lite.criterion]
            plan, out = self._call(threshold, q, k, v, layout, site, tiles)
            if plan is not None and plan.dense_reason is None:
                trial.add((out.float() - dense).abs().sum() / size, plan.density())

    def _call(
        self,
        threshold: float,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: VideoLayout,
        site: CallSite,
        state: LiteState,
    ) -> tuple[AttentionPlan | None, Tensor]:
        method = replace(self.lite, threshold=threshold)
        if state.seed is None:
            state.seed = method.init_state().seed
        plan = method.decide(q, k, v, layout, site, state)
        if plan is None:
            return None, q
        out = attend_and_learn(method, plan, q, k, v, site, state)
        if state.tiles is not None:
            self.tile_sizes.add(state.tiles.blocks)
        return plan, out


def _fork(state: LiteState) -> LiteState:
    """Copy what a trial changes; masks are replaced as a whole, never written to."""
    tiles = state.tiles
    copied = None if tiles is None else replace(tiles, skipped=tiles.skipped.clone())
    return LiteState(copied, copy.deepcopy(state.seed))
