"""Dense attention as a method: the control that every other one is measured against."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod, register
from vidsparse.plan import AttentionPlan, CallSite


@register
@dataclass(frozen=True)
class Dense(SparseMethod):
    """Leave every call to the pipeline's own attention.

    Attributes:
        density: without effect, and refused where it is asked for; every pair is attended to.
    """

    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "every call dense: the reference"
    source: ClassVar[str] = "control"

    density: float = 1.0

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Return None: dense."""
        return None

    def instead_of_density(self) -> str | None:
        """Say that no call is sparse; density 1 is what happens."""
        return None if self.density == 1 else "every call dense"
