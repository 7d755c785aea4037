"""Keep the tokens of a few attention calls, and judge plans by the attention mass they hold."""

import math
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, ClassVar

from torch import Tensor

from vidsparse.attention import attend_permuted
from vidsparse.kernels.launch import preferred_blocks
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.profiling.recall import oracle_recall, recall

# Where the attention map is looked at, in shares of the sparse steps and of the layers.
_SITE_STEPS = (0.3, 0.8)
_SITE_LAYERS = (0.2, 0.5, 0.85)
# Calls on the same tokens before a method's plan is judged: searches and clusters settle.
_SETTLING_CALLS = 3


@dataclass(frozen=True)
class Captured:
    """Tokens of one attention call: q, k, v (1, H, S, D) in natural order."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: VideoLayout
    site: CallSite


@dataclass(frozen=True)
class Capture(SparseMethod):
    """Leave every call dense, and keep the first batch row's tokens at a few sites.

    Attributes:
        first_step: first step that is sparse in the sweep.
        found: what was kept.
    """

    name: ClassVar[str] = "capture"
    summary: ClassVar[str] = "keeps tokens of dense calls"
    source: ClassVar[str] = "control"

    first_step: int = 0
    found: list[Captured] = field(default_factory=list)

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Return None: dense."""
        if self._wanted(site):
            q, k, v = (x[:1].detach().clone() for x in (q, k, v))
            self.found.append(Captured(q, k, v, layout, site))
        return None

    def _wanted(self, site: CallSite) -> bool:
        steps = (site.num_steps or 1) - self.first_step
        wanted_steps = {self.first_step + math.floor(share * steps) for share in _SITE_STEPS}
        wanted_layers = {math.floor(share * site.num_layers) for share in _SITE_LAYERS}
        return site.branch == 0 and site.step in wanted_steps and site.layer in wanted_layers


class RecallJudge:
    """Say how much of the true attention mass a method's plans keep.

    Attributes:
        sites: captured tokens; without any, recalls are None.
    """

    def __init__(self, sites: list[Captured]) -> None:
        self.sites = sites
        self._oracle: dict[float, float | None] = {}

    def oracle(self, density: float) -> float | None:
        """Return the recall of the best raster blocks, as large as the kernels', at a density."""
        if density not in self._oracle:
            found = [_oracle(tokens, density) for tokens in self.sites]
            self._oracle[density] = fmean(found) if found else None
        return self._oracle[density]

    def of(self, method: SparseMethod) -> float | None:
        """Return a method's mean recall in [0, 1] over sites, heads and queries."""
        if not self.sites:
            return None
        return fmean(_recall(tokens, settled_plan(method, tokens)) for tokens in self.sites)


def settled_plan(method: SparseMethod, tokens: Captured) -> AttentionPlan | None:
    """Return a method's plan after a few steps on the same tokens; None when it stays dense."""
    state, plan = method.init_state(), None
    for call in range(_SETTLING_CALLS):
        site = replace(tokens.site, step=tokens.site.step + call)
        plan = method.decide(tokens.q, tokens.k, tokens.v, tokens.layout, site, state)
        if plan is not None:
            output = attend_permuted(tokens.q, tokens.k, tokens.v, plan)
            method.observe(output, plan, site, state)
    return plan


def _recall(tokens: Captured, plan: AttentionPlan | None) -> float:
    return 1.0 if plan is None else float(recall(tokens.q, tokens.k, plan).mean())


def _oracle(tokens: Captured, density: float) -> float:
    blocks = preferred_blocks(tokens.q.device)
    return float(oracle_recall(tokens.q, tokens.k, density, *blocks).mean())
