from pathlib import Path

import lpips as reference_package
import pytest
import torch
import torchvision
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.quality import (
    NO_BACKBONE,
    Lpips,
    MetricUnavailableError,
    backbone_file,
    compare_videos,
    load_lpips,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchvision")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of torch's, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", _no_network)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(9, 3, 40, 64, generator=generator)
    noise = torch.randn(reference.shape, generator=generator) * 0.1
    return (reference + noise).clamp(0, 1), reference


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("net", "title"), [("alex", "AlexNet"), ("vgg", "VGG16")])
def test_without_backbone_it_says_how_to_get_it(net: str, title: str) -> None:
    with pytest.raises(MetricUnavailableError, match=f"unavailable: get {title}'s weights"):
        Lpips(net=net)
    note = load_lpips(net=net)
    assert isinstance(note, str)
    assert (note == NO_BACKBONE) == (net == "alex")


def test_damaged_backbone_is_no_backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    backbone_file().parent.mkdir()
    backbone_file().write_bytes(b"not weights")
    note = load_lpips()
    assert isinstance(note, str)
    assert "damaged" in note


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(UsageError, match="no backbone 'squeeze'; choose one of alex, vgg"):
        Lpips(net="squeeze")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_it_is_the_lpips_package_called_directly(
    monkeypatch: pytest.MonkeyPatch, cache: Path, net: str
) -> None:
    # Pretrained weights need a network; the agreement does not depend on them.
    small = _shrunk if net == "vgg" else torchvision.models.alexnet
    name = "vgg16" if net == "vgg" else "alexnet"
    monkeypatch.setattr(torchvision.models, name, _seeded(small))
    backbone_file(net).touch()
    video, reference = pair()
    direct = reference_package.LPIPS(net=net, verbose=False)
    with torch.no_grad():
        expected = direct(video * 2 - 1, reference * 2 - 1).reshape(-1)
    metric = Lpips(net=net)
    assert torch.allclose(metric(video, reference), expected, atol=1e-4)
    assert (expected > 0.001).all()
    found = compare_videos(video, reference, lpips="", lpips_vgg=metric)
    assert found.mean_lpips_vgg == pytest.approx(float(expected.mean()), abs=1e-4)
    assert metric(reference, reference).tolist() == pytest.approx([0.0] * 9, abs=1e-6)


def _seeded(build: object) -> object:
    def make(*, pretrained: bool) -> torch.nn.Module:
        assert pretrained
        torch.manual_seed(3)
        assert callable(build)
        return build()

    return make


def _shrunk() -> torch.nn.Module:
    """VGG16's features without its 120 M parameters of classifier, which LPIPS drops."""
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    module = torch.nn.Module()
    module.features = features
    return module


def _no_network(*_: object, **__: object) -> None:
    raise AssertionError("LPIPS must never download by itself")
