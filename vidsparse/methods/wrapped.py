"""The part that methods around another method share."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vidsparse.kernels.block_sparse_attention import AttentionOutput
from vidsparse.methods.base import Phase, SparseMethod
from vidsparse.plan import AttentionPlan, CallSite


@dataclass(frozen=True)
class WrappedMethod(SparseMethod):
    """A method that leaves states and learning to another one; subclasses say how it plans.

    Attributes:
        inner: the other method.
    """

    inner: SparseMethod = field(kw_only=True)

    def init_state(self) -> Any:
        """Return a state of the other method."""
        return self.inner.init_state()

    def state_key(self, site: CallSite) -> Hashable:
        """Share states as the other method does."""
        return self.inner.state_key(site)

    def state_bytes(self, state: Any) -> int:
        """Count a state as the other method does."""
        return self.inner.state_bytes(state)

    def observe(
        self, output: AttentionOutput, plan: AttentionPlan, site: CallSite, state: Any
    ) -> None:
        """Let the other method learn."""
        self.inner.observe(output, plan, site, state)

    def compare(
        self, exact: Tensor, out: Tensor, plan: AttentionPlan, site: CallSite, state: Any
    ) -> None:
        """Let the other method learn from a dense output beside its own."""
        self.inner.compare(exact, out, plan, site, state)

    def phases(self, num_steps: int, first_step: int) -> tuple[Phase, ...]:
        """Split a run as the other method does."""
        return self.inner.phases(num_steps, first_step)
