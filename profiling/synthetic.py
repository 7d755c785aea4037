"""Queries, keys and values that look like a video's to a sparse method, built on the device."""

import torch
from torch import Tensor

from vidsparse.layout import VideoLayout

# Wavelengths of the fields, in lengths of the grid's axes (frames, rows, columns); heads differ
# in which axis they look along.
_WAVES = ((1.0, 6.0, 6.0), (0.3, 10.0, 10.0), (4.0, 3.0, 3.0), (8.0, 8.0, 1.0))
_GAIN = 1.25
_NOISE = 0.3


def video_qkv(
    layout: VideoLayout,
    B: int,
    H: int,
    D: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Build q, k, v whose tokens form clusters and whose attention is local in some field.

    Each head has smooth random fields over the grid, sampled by sines. Query and key share them,
    so that tokens of like field values attend to each other, wherever they lie. Text tokens are
    noise.

    Args:
        layout: the sequence.
        B: batch rows.
        H: heads.
        D: head size.
        device: where the tensors are built.
        dtype: of the tensors.
        seed: of a generator of its own.

    Returns:
        q, k, v: (B, H, S, D).
    """
    generator = torch.Generator(device).manual_seed(seed)
    q, k, v = (torch.empty(B, H, layout.num_tokens, D, device=device, dtype=dtype) for _ in "qkv")
    places = _grid_places(layout, device)
    for head in range(B * H):
        field = _field(places, _WAVES[head % len(_WAVES)], D, generator)
        for x, gain in ((q, _GAIN), (k, _GAIN), (v, 1.0)):
            noise = torch.randn(layout.num_tokens, D, generator=generator, device=device)
            tokens = noise * _NOISE
            tokens[layout.text_before : layout.video_end] += field * gain
            x.view(B * H, *x.shape[2:])[head] = tokens.to(dtype)
    return q, k, v


def _grid_places(layout: VideoLayout, device: torch.device) -> Tensor:
    axes = [torch.linspace(0, 1, n, device=device) for n in layout.grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)


def _field(
    places: Tensor, waves: tuple[float, float, float], D: int, generator: torch.Generator
) -> Tensor:
    """Sample (S, D) sines of random direction at the (S, 3) places."""
    scale = torch.tensor(waves, device=places.device)
    directions = torch.randn(D, 3, generator=generator, device=places.device) * scale
    phases = torch.rand(D, generator=generator, device=places.device) * 2 * torch.pi
    return torch.sin(places @ directions.T + phases)
