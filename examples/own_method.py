"""A sparse method of your own, in one class: attend to the nearest frames only."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import vidsparse
from vidsparse.kernels.block_mask import BlockMask
from vidsparse.kernels.launch import preferred_blocks
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod
from vidsparse.plan import AttentionPlan, CallSite


@dataclass(frozen=True)
class NearestBlocks(SparseMethod):
    """Keep the blocks around the diagonal; in a frame-major sequence, the nearest frames.

    Attributes:
        density: share of blocks to keep, in (0, 1].
    """

    name: ClassVar[str] = "nearest"
    summary: ClassVar[str] = "blocks around the diagonal"
    source: ClassVar[str] = "this example"

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan:
        """Keep, for each query block, the key blocks nearest to it."""
        S = q.shape[2]
        block_q, block_kv = preferred_blocks(q.device)
        rows = torch.arange(-(-S // block_q), device=q.device) * block_q + block_q / 2
        columns = torch.arange(-(-S // block_kv), device=q.device) * block_kv + block_kv / 2
        distance = (rows[:, None] - columns).abs()
        kept = max(1, round(self.density * len(columns)))
        nearest = distance.topk(kept, largest=False).indices
        keep = torch.zeros_like(distance, dtype=torch.bool).scatter_(1, nearest, True)
        mask = BlockMask.from_dense(
            keep[None, None], block_q=block_q, block_kv=block_kv, seq_q=S, seq_kv=S
        )
        return AttentionPlan(mask)


@torch.no_grad()
def main() -> None:
    from bare_transformer import build_transformer

    transformer = build_transformer()
    latents = torch.randn(1, 4, 9, 32, 32, generator=torch.Generator().manual_seed(0))
    inputs = (latents, torch.tensor([500.0]), torch.zeros(1, 8, 16))
    dense = transformer(*inputs, return_dict=False)[0]
    for density in (1.0, 0.5, 0.25):
        with vidsparse.enabled(transformer, NearestBlocks(density), dense_steps=0):
            sparse = transformer(*inputs, return_dict=False)[0]
        error = (sparse - dense).norm() / dense.norm()
        print(f"density {density}: relative error {error:.4f}")


if __name__ == "__main__":
    main()
