"""Look at the attention maps of another method while it generates."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.maps import SiteMaps, attention_maps
from vidsparse.methods.wrapped import WrappedMethod
from vidsparse.plan import AttentionPlan, CallSite

# Heads looked at when none are named.
_HEADS = 4


@dataclass(frozen=True)
class WatchedMaps(WrappedMethod):
    """Another method whose plan is looked at once, for ``vidsparse profile --maps``.

    Attributes:
        density: the other method's.
        inner: what plans.
        layer: layer looked at; None takes the middle one.
        step: denoising step looked at; None takes the first sparse one of the second half.
        heads: heads looked at; None takes four.
        found: what was seen, at most one entry.

    Raises:
        UsageError: at the first sparse call, when layer, step or a head is out of range.
    """

    name: ClassVar[str] = "maps"
    summary: ClassVar[str] = "draws the maps of another method"
    source: ClassVar[str] = "control"

    layer: int | None = None
    step: int | None = None
    heads: tuple[int, ...] | None = None
    found: list[SiteMaps] = field(default_factory=list, compare=False, repr=False)

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Plan as the other method does; keep the maps of the call that was asked for."""
        _check_range("layer", self.layer, site.num_layers)
        _check_range("step", self.step, site.num_steps)
        for head in self.heads or ():
            _check_range("head", head, q.shape[1])
        plan = self.inner.decide(q, k, v, layout, site, state)
        if plan is not None and not self.found and self._wanted(site):
            heads = self.heads or _spread_heads(q.shape[1])
            self.found.append(attention_maps(self.inner, q, k, layout, plan, site, heads))
        return plan

    def _wanted(self, site: CallSite) -> bool:
        layer = site.num_layers // 2 if self.layer is None else self.layer
        half = (site.num_steps or 0) // 2
        on_time = site.step >= half if self.step is None else site.step == self.step
        return site.branch == 0 and site.layer == layer and on_time


def _spread_heads(H: int) -> tuple[int, ...]:
    return tuple(sorted({i * H // _HEADS for i in range(_HEADS)}))


def _check_range(name: str, value: int | None, count: int | None) -> None:
    if value is not None and count is not None and not 0 <= value < count:
        raise UsageError(f"--{name} {value} does not exist here; use 0 to {count - 1}")
