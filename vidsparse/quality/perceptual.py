"""LPIPS with pretrained backbones, which are never downloaded and never replaced."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsparse.errors import UsageError, VidsparseError
from vidsparse.quality.frames import check_pair


@dataclass(frozen=True)
class _Backbone:
    """A network LPIPS may stand on: its name for people, in torchvision, and its weights."""

    title: str
    function: str
    file: str

    @property
    def how_to_get(self) -> str:
        call = f"from torchvision.models import {self.function}; {self.function}"
        return f"python -c \"{call}(weights='DEFAULT')\""

    @property
    def missing(self) -> str:
        return f"unavailable: get {self.title}'s weights with {self.how_to_get}"


_BACKBONES = {
    "alex": _Backbone("AlexNet", "alexnet", "alexnet-owt-7be5be79.pth"),
    "vgg": _Backbone("VGG16", "vgg16", "vgg16-397923af.pth"),
}
NETS = tuple(_BACKBONES)
NO_BACKBONE = _BACKBONES["alex"].missing


class MetricUnavailableError(VidsparseError):
    """A metric that needs a file this machine does not have; the message says how to get it."""


class Lpips:
    """LPIPS; "alex" is the variant most video papers report, SVG reports "vgg".

    Raises:
        MetricUnavailableError: the backbone's weights are not in torch's cache. They are never
            fetched here, and never replaced by random ones.
        UsageError: there is no such backbone.

    Source: Zhang et al. 2018, arXiv:1801.03924; weights v0.1 of the ``lpips`` package.
    """

    def __init__(self, device: torch.device | str = "cpu", *, net: str = "alex") -> None:
        file = backbone_file(net)
        if not file.is_file():
            raise MetricUnavailableError(_BACKBONES[net].missing)
        import lpips

        try:
            self._net: Any = lpips.LPIPS(net=net, verbose=False).to(device)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise MetricUnavailableError(
                f"unavailable: {file} is damaged; delete it, then {_BACKBONES[net].how_to_get}"
            ) from error
        self._device = device

    @torch.no_grad()
    def __call__(self, video: Tensor, reference: Tensor) -> Tensor:
        """Return the distance of each frame: (F,), 0 for equal frames; inputs in [0, 1]."""
        check_pair(video, reference)
        pairs = zip(video.split(8), reference.split(8), strict=True)
        values = [self._net(self._signed(a), self._signed(b)).reshape(-1) for a, b in pairs]
        return torch.cat(values).cpu()

    def _signed(self, frames: Tensor) -> Tensor:
        """Map [0, 1] to [-1, 1], what the network was trained on."""
        return frames.to(self._device, torch.float32) * 2 - 1


def backbone_file(net: str = "alex") -> Path:
    """Return where torch keeps a backbone's weights.

    Raises:
        UsageError: there is no such backbone.
    """
    if net not in _BACKBONES:
        raise UsageError(f"LPIPS has no backbone {net!r}; choose one of {', '.join(NETS)}")
    return Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONES[net].file


def load_lpips(device: torch.device | str = "cpu", *, net: str = "alex") -> Lpips | str:
    """Return the metric, or the note that says why it is unavailable and how to get it."""
    try:
        return Lpips(device, net=net)
    except MetricUnavailableError as error:
        return str(error)
