"""Train the VAE on procedural clips for a given time."""

import time
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLWan
from fast_vae import speed_up
from parts import build_vae, decode_clip, encode_moments, whole_clip
from scenes import render, sample_scenes
from settings import Settings
from torch import Tensor

# Large frames are part of it because the middle block attends over the whole frame.
SIZES = ((17, 128, 128), (17, 128, 128), (17, 128, 128), (5, 256, 256))
VARIANTS = (
    {"stacked": True, "fused": True},
    {"stacked": False, "fused": True},
    {"stacked": False, "fused": False},
)
KL_WEIGHT = 1e-4


def _differences(x: Tensor, y: Tensor) -> Tensor:
    loss = x.new_zeros(())
    for dim in (2, 3, 4):
        loss = loss + (x.diff(dim=dim) - y.diff(dim=dim)).abs().mean()
    return loss / 3


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """L1 of the pixels, of their differences in space and time, and of two coarser scales."""
    loss = (x - y).abs().mean() + 0.7 * _differences(x, y)
    for _ in range(2):
        x, y = (F.avg_pool3d(one, (1, 2, 2)) for one in (x, y))
        loss = loss + 0.5 * (x - y).abs().mean()
    return loss


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean.pow(2) + logvar.exp() - 1.0 - logvar).mean()


def _clips(rng: torch.Generator, size: tuple[int, int, int], n: int, device: str) -> Tensor:
    frames, height, width = size
    scenes, _ = sample_scenes(n, rng)
    video = render(scenes.to(torch.device(device)), frames=frames, height=height, width=width)
    return video.contiguous(memory_format=torch.channels_last_3d)


def _new_vae(settings: Settings, device: str, variant: dict[str, bool]) -> AutoencoderKLWan:
    torch.manual_seed(settings.seed)
    vae = whole_clip(build_vae(settings.vae_base)).to(device).train()
    return speed_up(vae, **variant)


def _step(vae: AutoencoderKLWan, video: Tensor, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruct and go backward; returns reconstruction loss, KL and the clips."""
    with torch.autocast(device, torch.bfloat16):
        mean, logvar = encode_moments(vae, video)
        mean, logvar = mean.float(), logvar.float()
        latents = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        out = decode_clip(vae, latents).float()
    rec, kl = reconstruction_loss(out, video), _kl(mean, logvar)
    (rec + KL_WEIGHT * kl).backward()
    return rec.detach(), kl.detach(), out.detach()


def _batch_size(settings: Settings, size: tuple[int, int, int]) -> int:
    # About the same number of pixels each step.
    return max(1, round(settings.vae_batch * 17 * 128 * 128 / (size[0] * size[1] * size[2])))


def fastest_variant(settings: Settings, device: str) -> dict[str, bool]:
    """Time a few steps of each arrangement of the VAE's arithmetic on this device."""
    if device != "cuda":
        return {"stacked": False, "fused": False}
    times: list[float] = []
    rng = torch.Generator().manual_seed(settings.seed)
    video = _clips(rng, SIZES[0], _batch_size(settings, SIZES[0]), device)
    for variant in VARIANTS:
        begun = time.monotonic()
        try:
            vae = _new_vae(settings, device, variant)
            for _ in range(2):
                _step(vae, video, device)
            torch.cuda.synchronize()
            warm = time.monotonic()
            for _ in range(3):
                _step(vae, video, device)
            torch.cuda.synchronize()
            times.append((time.monotonic() - warm) / 3)
        except Exception as error:
            print(f"vae variant {variant} failed: {error!r}"[:600], flush=True)
            times.append(float("inf"))
        print(
            f"vae variant {variant}: {times[-1]:.3f} s a step, "
            f"{time.monotonic() - begun:.1f} s to find out",
            flush=True,
        )
        # Good enough is good enough: 24 clips of 17 frames in 60 ms.
        if times[-1] < 0.06:
            break
    return VARIANTS[times.index(min(times))]


def train_vae(
    settings: Settings, seconds: float, device: str
) -> tuple[AutoencoderKLWan, dict[str, Any]]:
    """Train for ``seconds``; the learning rate falls to zero at the end.

    Returns:
        The VAE in evaluation mode with latents_mean and latents_std set, and its history.
    """
    start, step = time.monotonic(), 0
    variant = fastest_variant(settings, device)
    vae = _new_vae(settings, device, variant)
    optimiser = torch.optim.AdamW(
        vae.parameters(),
        lr=settings.vae_lr,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=device == "cuda",
    )
    rng = torch.Generator().manual_seed(settings.seed + 1)
    history: list[tuple[float, int, float, float, float]] = []
    while (spent := time.monotonic() - start) < seconds:
        part = spent / seconds
        rate = settings.vae_lr * min(1.0, (step + 1) / 100) * min(1.0, (1.001 - part) / 0.4)
        for group in optimiser.param_groups:
            group["lr"] = rate
        size = SIZES[step % len(SIZES)] if settings.vae_base > 8 else (9, 32, 32)
        video = _clips(rng, size, _batch_size(settings, size), device)
        if settings.vae_base <= 8:
            video = video[: settings.vae_batch]
        optimiser.zero_grad(set_to_none=True)
        rec, kl, out = _step(vae, video, device)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if step in (0, 5, 20) or step % 50 == 0:
            psnr = -10 * torch.log10((out.clamp(-1, 1) - video).pow(2).mean() / 4)
            row = (round(time.monotonic() - start, 1), step, rec.item(), kl.item(), psnr.item())
            history.append(row)
            print(
                f"vae {row[0]:6.1f}s step {step:5d} clips {video.shape[0]} rec {row[2]:.4f} "
                f"kl {row[3]:.3f} psnr {row[4]:.2f}",
                flush=True,
            )
            if not torch.isfinite(rec):
                raise RuntimeError("the VAE's loss is not finite")
        step += 1
    vae.eval().requires_grad_(False)
    stats = measure_latents(vae, settings, device)
    vae.register_to_config(**stats)
    return vae, {"steps": step, "history": history, "variant": variant, **stats}


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, settings: Settings, device: str) -> dict[str, Any]:
    """Measure the latents' mean and standard deviation per channel on fresh clips."""
    rng = torch.Generator().manual_seed(settings.seed + 2)
    grid = settings.grid("cpu")
    size = (grid.frames, grid.height, grid.width)
    parts = []
    for _ in range(4):
        with torch.autocast(device, torch.bfloat16):
            parts.append(encode_moments(vae, _clips(rng, size, grid.encode, device))[0].float())
    latents = torch.cat(parts)
    return {
        "latents_mean": latents.mean((0, 2, 3, 4)).tolist(),
        "latents_std": latents.std((0, 2, 3, 4)).tolist(),
    }
