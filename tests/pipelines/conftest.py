from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import vidsparse
from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing
from vidsparse.pipelines.attach import attach
from vidsparse.pipelines.layers import DenseOp
from vidsparse.pipelines.testing import TinyPipeline
from vidsparse.plan import CallSite
from vidsparse.profiling.recorder import CallRecorder

Pack = Callable[[Tensor, tuple[int, int, int]], Tensor]


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


class FirstCallError(Exception):
    """Ends a forward at its first attention call."""

    def __init__(self, q: Tensor, layout: VideoLayout) -> None:
        super().__init__("seen enough")
        self.q, self.layout = q, layout


class StopAtFirstCall:
    """Attention that raises what its first call was given."""

    recorder = CallRecorder()

    def __call__(self, q: Tensor, *args: Tensor, layout: VideoLayout, **kwargs: Any) -> Tensor:
        raise FirstCallError(q.detach().clone(), layout)

    def reset(self) -> None:
        pass


@contextmanager
def marker(
    transformer: torch.nn.Module, axes: str, place: tuple[int, int, int], pack: Pack | None
) -> Iterator[None]:
    """Add 10 to all channels of one latent (frame, row, column) of whatever is denoised."""

    def put(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        shift = torch.zeros_like(latents)
        if pack is None:
            where = dict(zip("FHW", place, strict=True))
            shift[tuple(where.get(axis, slice(None)) for axis in axes)] = 10
        else:
            shift += 10 * pack(latents, place)
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": latents + shift}
        return (latents + shift, *args[1:]), kwargs

    hook = transformer.register_forward_pre_hook(put, with_kwargs=True)
    yield
    hook.remove()


def first_queries(tiny: TinyPipeline) -> FirstCallError:
    attachment = attach(tiny.pipe, StopAtFirstCall())
    with pytest.raises(FirstCallError) as caught:
        tiny.latents()
    attachment.detach()
    return caught.value


def packed(tiny: TinyPipeline, layout: VideoLayout) -> Pack:
    """Put a marker where the pipeline's own packing puts a latent, for packed latents."""

    def pack(latents: Tensor, place: tuple[int, int, int]) -> Tensor:
        video = torch.zeros(1, 1, *layout.grid)
        video[(0, 0, *place)] = 1
        tokens = tiny.pipe._pack_latents(video, 1, 1)
        return torch.nn.functional.pad(tokens, (0, 0, layout.text_before, layout.text_after))

    return pack


@dataclass
class Contract:
    """What every family promises, checked on a tiny pipeline.

    Attributes:
        tiny: the pipeline.
        spy: noted the dense run.
        expected: latents of the unattached pipeline.
    """

    tiny: TinyPipeline
    spy: SpyAttention
    tolerance: float = 0.0
    expected: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.expected = self.tiny.latents()

    def same(self, latents: Tensor) -> bool:
        if not self.tolerance:
            return torch.equal(latents, self.expected)
        error = (latents - self.expected).abs().max() / self.expected.abs().max()
        return float(error) <= self.tolerance

    def check_dense(self) -> VideoLayout:
        """Attached but dense: the same video. Returns the layout of the first call."""
        attachment = attach(self.tiny.pipe, self.spy)
        assert self.same(self.tiny.latents())
        attachment.detach()
        assert {shape[2] for shape in self.spy.shapes} == {o.num_tokens for o in self.spy.layouts}
        return self.spy.layouts[0]

    def check_marker(self, axes: str = "BCFHW", patch: tuple[int, int, int] = (1, 2, 2)) -> None:
        """A latent reaches the token that the layout says, and no other.

        ``axes`` are those of what the transformer is given, "BSC" where it is packed already.
        """
        plain = first_queries(self.tiny)
        pack = packed(self.tiny, plain.layout) if axes == "BSC" else None
        frames, height, width = plain.layout.grid
        for f, y, x in {(0, 0, width - 1), (frames - 1, height - 1, 0)}:
            place = tuple(n * p for n, p in zip((f, y, x), patch, strict=True))
            with marker(self.tiny.pipe.transformer, axes, place, pack):
                marked = first_queries(self.tiny)
            change = (marked.q - plain.q).abs().amax(dim=(0, 1, 3))
            tokens = (change > 1e-3 * change.max()).nonzero().flatten().tolist()
            assert tokens == [plain.layout.text_before + (f * height + y) * width + x]

    def check_output(self) -> None:
        """A token of a packed prediction changes the latent that the layout says, and no other."""
        layout = self.spy.layouts[0]
        place = (layout.frames - 1, layout.height - 1, 0)
        token = layout.text_before + (place[0] * layout.height + place[1]) * layout.width

        def put(module: Any, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> Any:
            marked = output[0].clone()
            marked[:, token] += 10
            return marked, *output[1:]

        plain = self.tiny.latents(steps=1)
        hook = self.tiny.pipe.transformer.register_forward_hook(put)
        change = (self.tiny.latents(steps=1) - plain).abs()
        hook.remove()
        if change.dim() == 3:
            change = self.tiny.pipe._unpack_latents(change, *layout.grid, 1, 1)
        changed = change.amax(dim=(0, 1))
        assert (changed > 1e-3 * changed.max()).nonzero().tolist() == [list(place)]

    def check_sparse(self, changes: dict[str, Any], *, density: float = 0.6) -> None:
        """Sparse on a larger video: finite, every call sparse, states apart."""
        with vidsparse.enabled(
            self.tiny.pipe, "random", density=density, dense_steps=0, record_sites=True
        ) as handle:
            assert torch.isfinite(self.tiny.latents(changes=changes)).all()
            states = set(handle._attachment.attention._states)
        summary = handle.summary()
        assert summary.sparse_calls == len(self.spy.shapes)
        assert summary.dense_calls == dict(self.spy.recorder.dense)
        sites = [site for site, kept in handle.recorder.rows if isinstance(kept, Tensor)]
        now = sites[-1].generation
        last = {(s.transformer, s.layer, s.branch) for s in sites if s.generation == now}
        assert {key[0] for key in states} == last

    def check_disabled(self) -> None:
        """Nothing is left of the attachments."""
        assert self.same(self.tiny.latents())


@pytest.fixture
def spy() -> SpyAttention:
    return SpyAttention()


@pytest.fixture
def contract(spy: SpyAttention) -> Callable[..., Contract]:
    """Build a pipeline's contract: ``contract(tiny)``, with a tolerance where masks give way."""

    def make(tiny: TinyPipeline, *, tolerance: float = 0.0) -> Contract:
        return Contract(tiny, spy, tolerance)

    return make


@pytest.fixture(scope="session")
def wan() -> testing.TinyPipeline:
    return testing.wan()
