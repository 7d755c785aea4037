"""Train the VAE on procedural clips for a given time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from fast_vae import speed_up
from optim import Muon
from parts import build_vae, decode_clip, encode_moments, whole_clip
from scenes import Window, render, sample_scenes
from settings import Settings
from torch import Tensor, nn

# Scenes of the sizes that the transformer will see; a step draws a window of one of them.
SCENES = ((33, 128, 128), (17, 96, 96), (33, 128, 128), (61, 192, 192), (81, 320, 320))
KL_WEIGHT = 1e-4
FINISH = 0.8  # fraction of the time after which the large windows have their turn


@dataclass(frozen=True)
class Crop:
    """The size of one step: clips, frames, height, width."""

    clips: int
    frames: int
    height: int
    width: int


SMALL = Crop(12, 9, 96, 96)
# Long and large windows because convolutions look back and the middle block sees whole frames.
LARGE = (Crop(4, 17, 128, 128), Crop(2, 5, 320, 320))


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """L1 and squared error of the pixels, and L1 of their differences in space and time."""
    error = x - y
    edges = sum(error.diff(dim=dim).abs().mean() for dim in (2, 3, 4))
    return error.abs().mean() + 2.0 * error.pow(2).mean() + 0.1 * edges


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean.pow(2) + logvar.exp() - 1.0 - logvar).mean()


def _window(rng: torch.Generator, scene: tuple[int, int, int], crop: Crop) -> Window:
    parts = []
    for whole, part in zip(scene, (crop.frames, crop.height, crop.width), strict=True):
        first = int(torch.randint(whole - part + 1, (1,), generator=rng))
        parts.append(slice(first, first + part))
    return parts[0], parts[1], parts[2]


def _clips(rng: torch.Generator, step: int, crop: Crop, device: str) -> Tensor:
    scenes, _ = sample_scenes(crop.clips, rng)
    fitting = [s for s in SCENES if min(s[1:]) >= crop.height and s[0] >= crop.frames]
    size = fitting[step % len(fitting)]
    return render(
        scenes.to(torch.device(device)),
        frames=size[0],
        height=size[1],
        width=size[2],
        window=_window(rng, size, crop),
    )


def _losses(
    vae: AutoencoderKLWan, video: Tensor, noise: Tensor, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruct and go backward; returns reconstruction loss, KL and squared error."""
    with torch.autocast(device, torch.bfloat16, cache_enabled=False):
        mean, logvar = encode_moments(vae, video)
        mean, logvar = mean.float(), logvar.float()
        out = decode_clip(vae, mean + (0.5 * logvar).exp() * noise).float()
    rec, kl = reconstruction_loss(out, video), _kl(mean, logvar)
    (rec + KL_WEIGHT * kl).backward()
    return rec.detach(), kl.detach(), (out.detach().clamp(-1, 1) - video).pow(2).mean()


class Stepper:
    """Forward and backward of one window size, as a CUDA graph where that works."""

    def __init__(self, vae: AutoencoderKLWan, crop: Crop, device: str) -> None:
        c, z = crop, vae.config.z_dim
        latent = (c.clips, z, (c.frames - 1) // 4 + 1, c.height // 8, c.width // 8)
        self.device = device
        self.video = torch.zeros(c.clips, 3, c.frames, c.height, c.width, device=device)
        self.noise = torch.zeros(latent, device=device)
        self.grads = [p.grad for p in vae.parameters()]
        self.vae = vae
        self.run: Callable[[], tuple[Tensor, Tensor, Tensor]] = self._once
        if device == "cuda":
            self._capture()

    def _once(self) -> tuple[Tensor, Tensor, Tensor]:
        torch._foreach_zero_(self.grads)
        return _losses(self.vae, self.video, self.noise, self.device)

    def _capture(self) -> None:
        """Small steps are bound by their launches; a graph has one."""
        begun = time.monotonic()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._once()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = self._once()
        except Exception as error:
            print(f"vae: no CUDA graph, steps run eagerly: {error!r}"[:400], flush=True)
            torch.cuda.synchronize()
            # The failed capture may have left the generator waiting for its graph.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            return

        def replay() -> tuple[Tensor, Tensor, Tensor]:
            graph.replay()
            return results

        self.run = replay
        print(f"vae: graph ready after {time.monotonic() - begun:.1f} s", flush=True)

    def __call__(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Leave the gradients in place; the results are overwritten by the next call."""
        self.video.copy_(video)
        self.noise.normal_()
        return self.run()


def _optimisers(vae: AutoencoderKLWan, settings: Settings, device: str) -> list[Any]:
    kernels = [p for p in vae.parameters() if p.ndim >= 4]
    others = [p for p in vae.parameters() if p.ndim < 4]
    adam = torch.optim.AdamW(
        others, lr=settings.vae_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=device == "cuda"
    )
    return [Muon(kernels, lr=settings.vae_lr), adam]


def _new_vae(settings: Settings, device: str) -> AutoencoderKLWan:
    torch.manual_seed(settings.seed)
    vae = whole_clip(build_vae(settings.vae_base)).to(device).train()
    vae = speed_up(vae) if device == "cuda" else vae
    for p in vae.parameters():
        # Every graph adds to the same gradients.
        p.grad = torch.zeros_like(p)
    return vae


def train_vae(
    settings: Settings, seconds: float, device: str
) -> tuple[AutoencoderKLWan, dict[str, Any]]:
    """Train for ``seconds``; the learning rate falls to zero at the end.

    Returns:
        The VAE in evaluation mode with latents_mean and latents_std set, and its history.
    """
    start, step = time.monotonic(), 0
    vae = _new_vae(settings, device)
    optimisers = _optimisers(vae, settings, device)
    tiny = settings.vae_base <= 8
    small = Crop(2, 9, 32, 32) if tiny else SMALL
    large = (Crop(1, 9, 48, 48),) if tiny else LARGE
    steppers = {crop: Stepper(vae, crop, device) for crop in (small, *large)}
    rng = torch.Generator().manual_seed(settings.seed + 1)
    history: list[tuple[float, int, float, float, float]] = []
    while (spent := time.monotonic() - start) < seconds:
        part = spent / seconds
        rate = settings.vae_lr * min(1.0, (step + 1) / 100) * min(1.0, (1.001 - part) / 0.5)
        crop = small if part < FINISH else large[step % len(large)]
        rec, kl, squared = steppers[crop](_clips(rng, step, crop, device))
        _update(vae, optimisers, rate)
        if step in (0, 20, 100) or step % 200 == 0:
            psnr = -10 * torch.log10(squared / 4)
            row = (round(time.monotonic() - start, 1), step, rec.item(), kl.item(), psnr.item())
            history.append(row)
            print(
                f"vae {row[0]:6.1f}s step {step:5d} rec {row[2]:.4f} kl {row[3]:.3f} "
                f"psnr {row[4]:.2f}",
                flush=True,
            )
            if not torch.isfinite(rec):
                raise RuntimeError("the VAE's loss is not finite")
        step += 1
        if device == "cuda" and step % 8 == 0:
            # Keep the host close, else the clock above runs ahead of the device.
            torch.cuda.synchronize()
    for p in vae.parameters():
        p.grad = None
    vae.eval().requires_grad_(False)
    stats = measure_latents(vae, settings, device)
    vae.register_to_config(**stats)
    return vae, {"steps": step, "history": history, **stats}


def _update(vae: nn.Module, optimisers: list[torch.optim.Optimizer], rate: float) -> None:
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, settings: Settings, device: str) -> dict[str, Any]:
    """Measure the latents' mean and standard deviation per channel on fresh clips."""
    rng = torch.Generator().manual_seed(settings.seed + 2)
    grid = settings.grid("cpu")
    parts = []
    for _ in range(4):
        scenes, _ = sample_scenes(grid.encode, rng)
        scenes = scenes.to(torch.device(device))
        video = render(scenes, frames=grid.frames, height=grid.height, width=grid.width)
        with torch.autocast(device, torch.bfloat16):
            parts.append(encode_moments(vae, video)[0].float())
    latents = torch.cat(parts)
    return {
        "latents_mean": latents.mean((0, 2, 3, 4)).tolist(),
        "latents_std": latents.std((0, 2, 3, 4)).tolist(),
    }
