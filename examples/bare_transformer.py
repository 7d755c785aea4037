"""Sparse attention in a sampling loop of your own, without a pipeline.

The step comes from the timestep; `handle.generation` says how many there are, which a share of
dense steps needs. The transformer here is small and random: put yours in its place.
"""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

import vidsparse

STEPS = 4


def build_transformer() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    ).eval()


@torch.no_grad()
def main() -> None:
    transformer = build_transformer()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(1, 4, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 8, 16)

    handle = vidsparse.enable(transformer, method="svg", density=0.6, dense_steps=0.25)
    with handle.generation(num_steps=STEPS):
        for timestep in scheduler.timesteps:
            noise = transformer(latents, timestep.expand(1), text, return_dict=False)[0]
            latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
    print(handle.summary())
    handle.disable()


if __name__ == "__main__":
    main()
