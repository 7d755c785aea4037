"""Keep what compensation got wrong at one step, and add it at the steps after.

From one step to the next the errors of the same mask are nearly the same, far more so than the
outputs: on captured calls of tiny, density 0.25, adding the last step's error takes the relative
output error from 0.040 to 0.003, that of two steps ago to 0.007; reusing the last output itself
leaves 0.054. Averages of the error over neighbouring queries help little (0.030 over 8).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.kernels.block_mask import BlockMask, RaggedBlockMask
from vidsparse.plan import AttentionPlan

_FLOAT8 = torch.float8_e4m3fn


@dataclass
class Anchor:
    """The last step at which a call was also attended to densely.

    Attributes:
        step: when; None before the first.
        mask: blocks kept then, which the steps after keep too.
        tangents: where they are compensated exactly.
        error: (B, H, S, D) float8, dense minus compensated output over ``scale``, natural order.
        scale: (B, H, 1, 1) float32.
    """

    step: int | None = None
    mask: BlockMask | RaggedBlockMask | None = None
    tangents: Tensor | None = None
    error: Tensor | None = None
    scale: Tensor | None = None

    def serves(self, step: int, every: int) -> bool:
        """Say whether this anchor is less than ``every`` steps old."""
        return self.step is not None and 0 <= step - self.step < every

    def keep(self, step: int, plan: AttentionPlan, exact: Tensor, out: Tensor) -> None:
        """Take over a plan and its error, the dense output minus the compensated one."""
        error = exact.float() - out.float()
        largest = torch.finfo(_FLOAT8).max
        scale = error.abs().amax((2, 3), keepdim=True).clamp(min=1e-30) / largest
        self.step, self.mask, self.tangents = step, plan.mask, plan.tangents
        self.error, self.scale = (error / scale).to(_FLOAT8), scale

    def correction(self, dtype: torch.dtype) -> Tensor | None:
        """Return the error to add, (B, H, S, D)."""
        if self.error is None or self.scale is None:
            return None
        return self.error.to(dtype) * self.scale.to(dtype)
