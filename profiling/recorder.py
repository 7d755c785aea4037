"""Count what attention calls did, without waiting for the GPU."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class CallRecorder:
    """Sparse and dense calls of one attachment, with realised densities.

    Densities stay on their device until ``summary`` asks for them: recording costs no host sync.

    Attributes:
        keep_sites: also keep one row per call (site, density) for heat maps.
    """

    keep_sites: bool = False
    dense: Counter[str] = field(default_factory=Counter)
    sparse_calls: int = 0
    rows: list[tuple[object, Tensor | float]] = field(default_factory=list)
    # Sums by device: layers of one model may be spread over several.
    _density: dict[torch.device, Tensor] = field(default_factory=dict)
    _bound: dict[torch.device, Tensor] = field(default_factory=dict)
    _bounds: int = 0

    def record_dense(self, reason: str, site: object) -> None:
        """Count a dense call and why it was one."""
        self.dense[reason] += 1
        if self.keep_sites:
            self.rows.append((site, 1.0))

    def record_sparse(
        self, density: Tensor, site: object, *, error_bound: Tensor | None = None
    ) -> None:
        """Count a sparse call.

        Args:
            density: 0-dim, on any device.
            site: the call.
            error_bound: 0-dim, see ``AttentionPlan``; None where it is unknown.
        """
        density = density.detach().to(torch.float32)
        _add(self._density, density)
        self.sparse_calls += 1
        if error_bound is not None:
            _add(self._bound, error_bound)
            self._bounds += 1
        if self.keep_sites:
            self.rows.append((site, density))

    def mark(self, part: str) -> None:
        """Note that a part of a call has been queued: plan, permute, kernel, observe or restore.

        Only a recorder that times calls does something here.
        """

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.dense.clear()
        self.rows.clear()
        self.sparse_calls = 0
        self._density.clear()
        self._bound.clear()
        self._bounds = 0

    @property
    def calls(self) -> int:
        """All attention calls seen."""
        return self.sparse_calls + self.dense.total()

    def sparse_density(self) -> float | None:
        """Return the mean density of the sparse calls in (0, 1]; None without any."""
        return _total(self._density) / self.sparse_calls if self.sparse_calls else None

    def error_bound(self) -> float | None:
        """Return the mean bound of the sparse calls that have one; None without any."""
        return _total(self._bound) / self._bounds if self._bounds else None

    def overall_density(self) -> float | None:
        """Return the mean density of all calls, dense ones counting 1; None without any."""
        if not self.calls:
            return None
        return (_total(self._density) + self.dense.total()) / self.calls


def _add(sums: dict[torch.device, Tensor], value: Tensor) -> None:
    known = sums.get(value.device)
    sums[value.device] = value if known is None else known + value


def _total(sums: dict[torch.device, Tensor]) -> float:
    return sum(float(x) for x in sums.values())
