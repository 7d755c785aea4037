"""Find NaN and infinity in a call's tensors without waiting for the GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsparse.plan import CallSite


@dataclass
class FiniteCheck:
    """Whether tensors of a call were finite, told when the GPU has come that far.

    Attributes:
        site: the call.
        flag: 0-dim bool in host memory, True when finite.
        ready: event after which ``flag`` holds; None when it holds already.
    """

    site: CallSite
    flag: Tensor
    ready: torch.cuda.Event | None = None

    @staticmethod
    def start(site: CallSite, *tensors: Tensor) -> "FiniteCheck":
        """Begin to copy the answer to the host."""
        finite = torch.stack([x.sum().isfinite() for x in tensors]).all()
        if finite.device.type != "cuda":
            return FiniteCheck(site, finite)
        flag = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
        flag.copy_(finite, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return FiniteCheck(site, flag, ready)

    def raise_if_known(self) -> bool:
        """Return whether the answer is in.

        Raises:
            ValueError: q or k were not finite.
        """
        if self.ready is not None and not self.ready.query():
            return False
        if not bool(self.flag):
            raise ValueError(
                f"{self.site}: q or k holds NaN or infinity; the model or its input is broken "
                "there, compare with the dense pipeline"
            )
        return True
