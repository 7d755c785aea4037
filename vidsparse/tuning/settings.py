"""What to search, and the lab a search needs."""

from dataclasses import dataclass
from typing import Any, Protocol

from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.profiling.dense_run import ObservedAttention
from vidsparse.tuning.lab import Doomed, Trial, never
from vidsparse.tuning.target import Scores, Target

# Shares of the steps that may stay dense, in the order tried.
WARM_UPS = (0.2, 0.1, 0.3, 0.0)
# Step caches that are on by settings alone, on every pipeline.
CACHES = ("first_block", "taylorseer")


class Lab(Protocol):
    """Where candidates are generated; ``PipelineLab`` is one."""

    floor_name: str

    def dense(self, scene: Scene) -> float:
        """Generate a reference; return its seconds."""

    def observe(self, attention: ObservedAttention, scene: Scene) -> None:
        """Generate densely under observation."""

    def trial(self, config: SparseConfig, scene: Scene, doomed: Doomed = never) -> Trial:
        """Generate with settings and measure."""

    def short(self, config: SparseConfig | None, steps: int, scene: Scene) -> list[float]:
        """Time a few steps."""

    def floor(self, scene: Scene) -> Scores | None:
        """Compare two dense clips that differ in rounding."""


def trial_or_refusal(
    lab: Lab, config: SparseConfig, scene: Scene, doomed: Doomed = never
) -> dict[str, Any]:
    """Generate; settings that cannot run here, such as too small a density, are a miss."""
    try:
        return lab.trial(config, scene, doomed).as_dict()
    except UsageError as error:
        return Trial(None, None, refused=str(error)).as_dict()


@dataclass(frozen=True)
class TuneSettings:
    """What to search.

    Attributes:
        target: quality asked for.
        tuning: scenes that candidates are tried on.
        methods: names; None for all that are no controls.
        caches: names of step caches; empty for none.
        keep: methods that are generated with, the best ones of the screening.
        warm_ups: shares of the steps that may stay dense.
        allocate: also try densities by layer and noise level.
        eight_bit: also try the best sparse settings in 8 bits.
        seconds: no further candidate is begun after this many; None for no limit.

    Raises:
        UsageError: there are no scenes.
    """

    target: Target
    tuning: tuple[Scene, ...]
    methods: tuple[str, ...] | None = None
    caches: tuple[str, ...] = CACHES
    keep: int = 3
    warm_ups: tuple[float, ...] = WARM_UPS
    allocate: bool = True
    eight_bit: bool = False
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.tuning:
            raise UsageError("tuning needs at least one prompt")
