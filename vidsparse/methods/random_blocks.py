"""Random blocks at a density: the control that a method must beat."""

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidsparse.kernels.launch import preferred_blocks
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod, register
from vidsparse.methods.blocks import raster_geometry
from vidsparse.methods.budget import flat_top_k
from vidsparse.plan import AttentionPlan, CallSite


def site_generator(site: CallSite, seed: int, device: torch.device) -> torch.Generator:
    """Return a generator that depends on the call's place and the seed, and on nothing else.

    The generation does not count: the same video planned twice draws the same numbers.
    """
    place = f"{seed} {site.transformer} {site.layer} {site.step} {site.branch}"
    return torch.Generator(device).manual_seed(zlib.crc32(place.encode()))


@register
@dataclass(frozen=True)
class RandomBlocks(SparseMethod):
    """Keep text and, of the other blocks, a random choice that is drawn anew at every call.

    Attributes:
        density: kept share of query-key pairs, text included, in (0, 1].
        seed: chooses the draw.
        blocks: (query, key) tokens per block; None takes the kernels' choice.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random blocks: the floor for every method"
    source: ClassVar[str] = "control"

    seed: int = 0
    blocks: tuple[int, int] | None = None

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Draw the blocks of one call."""
        if self.density == 1:
            return None
        blocks = self.blocks or preferred_blocks(q.device)
        geometry = raster_geometry(layout, blocks, q.device, own=False)
        geometry.check(self.density)
        shape = (*q.shape[:2], *geometry.forced.shape)
        generator = site_generator(site, self.seed, q.device)
        scores = torch.rand(shape, generator=generator, dtype=torch.float32, device=q.device)
        sizes = geometry.q.sizes, geometry.kv.sizes
        return geometry.plan(flat_top_k(scores, self.density, *sizes, forced=geometry.forced))
