"""Which steps and layers stay dense."""

import math
from dataclasses import dataclass
from numbers import Integral

from vidsparse.errors import UsageError
from vidsparse.plan import CallSite


@dataclass(frozen=True)
class DenseSchedule:
    """Keep early steps and first layers dense, where the picture's structure is decided.

    A larger value costs speed and gains quality.

    Attributes:
        dense_steps: share of the steps in [0, 1] as a float, or a count as an int.
        dense_layers: share of the layers in [0, 1] as a float, or a count as an int.
        dense_above_sigma: steps whose noise level lies above this are dense too, in [0, 1];
            needs no number of steps.

    Raises:
        UsageError: a value is out of range.

    Source: SVG, arXiv:2502.01776, section 5.1; every peer keeps 10-30 % of the steps dense.
    """

    dense_steps: float | int = 0.2
    dense_layers: float | int = 0
    dense_above_sigma: float | None = None

    def __post_init__(self) -> None:
        for name in ("dense_steps", "dense_layers"):
            value = getattr(self, name)
            most = math.inf if isinstance(value, Integral) else 1
            if not 0 <= value <= most:
                raise UsageError(
                    f"{name}={value} must be a share in [0, 1] or a whole number of at least 0"
                )
        if self.dense_above_sigma is not None and not 0 <= self.dense_above_sigma <= 1:
            raise UsageError(f"dense_above_sigma={self.dense_above_sigma} must lie in [0, 1]")

    def reason(self, site: CallSite) -> str | None:
        """Say why this call stays dense; None when it may be sparse.

        Args:
            site: the call; its number of steps must be known when ``dense_steps`` is a share.

        Raises:
            UsageError: ``dense_steps`` is a share of an unknown number of steps.
        """
        if site.step < self._count(self.dense_steps, site.num_steps):
            return "dense steps"
        if site.layer < self._count(self.dense_layers, site.num_layers):
            return "dense layers"
        above = self.dense_above_sigma
        if above is not None and site.sigma is not None and site.sigma > above:
            return "dense above sigma"
        return None

    def first_sparse_layer(self, num_layers: int) -> int:
        """Return the first layer that may be sparse, ``num_layers`` when none may."""
        return min(self._count(self.dense_layers, num_layers), num_layers)

    @staticmethod
    def _count(value: float | int, total: int | None) -> int:
        if isinstance(value, Integral) or value == 0:
            return int(value)
        if total is None:
            raise UsageError(
                f"dense_steps={value} is a share, but a bare transformer does not tell how many "
                "steps there are; give num_steps= to handle.generation(), or a whole dense_steps"
            )
        # 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999...: compare in 1e-9.
        return math.floor(value * total + 1e-9)
