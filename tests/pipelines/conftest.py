from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing
from vidsparse.pipelines.layers import DenseOp
from vidsparse.plan import CallSite
from vidsparse.profiling.recorder import CallRecorder


@dataclass
class SpyAttention:
    """Stays dense and notes what each call was told."""

    recorder: CallRecorder = field(default_factory=lambda: CallRecorder(keep_sites=True))
    sites: list[CallSite] = field(default_factory=list)
    layouts: list[VideoLayout] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    resets: int = 0
    fail_at: int | None = None

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        layout: VideoLayout,
        site: CallSite,
        dense: DenseOp,
    ) -> Tensor:
        if len(self.sites) == self.fail_at:
            raise RuntimeError("interrupted on purpose")
        self.sites.append(site)
        self.layouts.append(layout)
        self.shapes.append(tuple(q.shape))
        return dense(q, k, v)

    def reset(self) -> None:
        self.resets += 1

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """(generation, step, branch) of each forward that got to its first layer."""
        return [(s.generation, s.step, s.branch) for s in self.sites if s.layer == 0]


@pytest.fixture
def spy() -> SpyAttention:
    return SpyAttention()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    # Tiny tensors: threads cost more than they bring.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def wan() -> testing.TinyPipeline:
    return testing.wan()
