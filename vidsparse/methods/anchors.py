"""Keep what compensation got wrong at one step, and add it at the steps after.

From one step to the next the errors of the same mask are nearly the same, far more so than the
outputs: on captured calls of tiny, density 0.25, adding the last step's error takes the relative
output error from 0.040 to 0.003, that of two steps ago to 0.007; reusing the last output itself
leaves 0.054. Averages of the error over neighbouring queries help little (0.030 over 8).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.methods.mask_bits import pack_bits

_FLOAT8 = torch.float8_e4m3fn


@dataclass
class Anchor:
    """The step whose blocks the steps after keep, and perhaps what they got wrong there.

    Attributes:
        step: when; None before the first.
        density: asked for then.
        bits: (B, H, Nq, ceil(Nkv / 8)) uint8, blocks kept then.
        tangents: (B, H, Nkv, D) where they are compensated exactly, in the queries' dtype.
        error: (B, H, S, D) float8, dense minus compensated output over ``scale``, natural order;
            None where the call was not compared.
        scale: (B, H, 1, 1) float32.
    """

    step: int | None = None
    density: float | None = None
    bits: Tensor | None = None
    tangents: Tensor | None = None
    error: Tensor | None = None
    scale: Tensor | None = None

    def serves(self, step: int, density: float, every: int) -> bool:
        """Say whether this anchor is less than ``every`` steps old and of that density."""
        recent = self.step is not None and 0 <= step - self.step < every
        return recent and self.density == density

    def keep_blocks(
        self, step: int, density: float, kept: Tensor, tangents: Tensor | None, dtype: torch.dtype
    ) -> None:
        """Take over the blocks of a step, (B, H, Nq, Nkv) bool, and forget the last error."""
        self.step, self.density, self.bits = step, density, pack_bits(kept)
        self.tangents = None if tangents is None else tangents.to(dtype)
        self.error = self.scale = None

    def keep_error(self, exact: Tensor, out: Tensor) -> None:
        """Take over what the blocks got wrong: the dense output minus the compensated one."""
        error = exact.float() - out.float()
        largest = torch.finfo(_FLOAT8).max
        self.scale = error.abs().amax((2, 3), keepdim=True).clamp(min=1e-30) / largest
        self.error = (error / self.scale).to(_FLOAT8)

    def correction(self, dtype: torch.dtype) -> Tensor | None:
        """Return the error to add, (B, H, S, D); None if there is none."""
        if self.error is None or self.scale is None:
            return None
        return self.error.to(dtype) * self.scale.to(dtype)
