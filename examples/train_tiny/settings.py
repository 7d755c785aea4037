"""What training does when: grids, batch sizes, the plan of each run."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Grid:
    """One size of clip and how it is trained."""

    name: str
    frames: int
    height: int
    width: int
    batch: int
    pool: int  # clips kept encoded
    fresh: int  # clips replaced per step
    encode: int  # clips rendered and encoded at once

    @property
    def tokens(self) -> int:
        """Tokens of one clip in the transformer."""
        return ((self.frames - 1) // 4 + 1) * (self.height // 8) * (self.width // 8)


@dataclass(frozen=True)
class Phase:
    """A share of a run's training time and the grids it draws from, by weight of time."""

    share: float
    grids: dict[str, float]


GRIDS = {
    grid.name: grid
    for grid in (
        Grid("mini", 17, 96, 96, 192, 8192, 32, 64),
        Grid("cpu", 33, 128, 128, 64, 4096, 12, 24),
        Grid("wide", 33, 96, 160, 64, 1024, 12, 24),
        Grid("tall", 33, 160, 96, 64, 1024, 12, 24),
        Grid("long", 49, 128, 128, 40, 768, 8, 16),
        Grid("gpu", 61, 192, 192, 12, 384, 3, 8),
        Grid("gpu-large", 81, 320, 320, 3, 96, 1, 2),
    )
}

RUNS = {
    # The first run learns on small clips, the second refines and adds the large grids.
    "first": (
        Phase(0.4, {"mini": 1.0}),
        Phase(0.5, {"mini": 0.15, "cpu": 0.85}),
        Phase(0.1, {"cpu": 0.5, "gpu": 0.3, "gpu-large": 0.2}),
    ),
    "second": (
        Phase(0.45, {"cpu": 0.7, "wide": 0.1, "tall": 0.1, "long": 0.1}),
        Phase(
            0.55,
            {"cpu": 0.42, "long": 0.06, "wide": 0.04, "tall": 0.04, "gpu": 0.22, "gpu-large": 0.22},
        ),
    ),
    # A model that already draws on the small grids learns the large ones.
    "large": (Phase(1.0, {"cpu": 0.15, "long": 0.05, "gpu": 0.4, "gpu-large": 0.4}),),
    # All grids together, so that none is forgotten while another is learnt.
    "third": (
        Phase(
            1.0,
            {"cpu": 0.36, "long": 0.05, "wide": 0.02, "tall": 0.02, "gpu": 0.27, "gpu-large": 0.28},
        ),
    ),
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run apart from the time it gets."""

    seed: int = 0
    heads: int = 6
    layers: int = 8
    ffn: int = 1024
    vae_base: int = 32
    vae_lr: float = 2e-3
    lr: float = 2e-3
    decay_from: float = 1.0  # fraction of the run where the learning rate starts to fall
    ema: float = 0.998
    caption_dropout: float = 0.1
    guidance: float = 4.0
    steps: int = 20
    check_clips: int = 64
    grids: tuple[Grid, ...] = tuple(GRIDS.values())

    def grid(self, name: str) -> Grid:
        """Find a grid by name."""
        return next(grid for grid in self.grids if grid.name == name)


def small(settings: Settings) -> Settings:
    """Shrink everything for a smoke test on a CPU; not for training."""
    grids = tuple(
        replace(
            g,
            frames=9 if g.frames < 60 else 13,
            height=g.height // 4 // 16 * 16 or 16,
            width=g.width // 4 // 16 * 16 or 16,
            batch=2,
            pool=4,
            fresh=1,
            encode=2,
        )
        for g in settings.grids
    )
    return replace(
        settings,
        heads=1,
        layers=1,
        ffn=64,
        vae_base=8,
        check_clips=2,
        steps=2,
        grids=grids,
    )
