"""What happens at run time when an attached self-attention is called."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import ModelFamily, diffusers_version
from vidsparse.pipelines.perturbation import perturbation
from vidsparse.pipelines.processors import Processor, dense_attention
from vidsparse.pipelines.text_order import move_back, move_text
from vidsparse.pipelines.tracker import Clock, StepTracker, clock_of
from vidsparse.plan import CallSite

DenseOp = Callable[[Tensor, Tensor, Tensor], Tensor]


class DenseCounter(Protocol):
    """Counts the calls that never reach the attention callable."""

    def record_dense(self, reason: str, site: object) -> None:
        """Count a dense call and why it was one."""


class Attention(Protocol):
    """What is attached; ``vidsparse.attention.SparseAttention`` is one."""

    @property
    def recorder(self) -> DenseCounter:
        """Where dense calls are counted."""

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
        """Attend: (B, H, S, D) in and out; ``dense`` does what diffusers would have done."""

    def reset(self) -> None:
        """Forget what was learnt from earlier calls."""


@dataclass
class AttachedTransformer:
    """One transformer under way.

    Attributes:
        name: attribute name in the pipeline.
        family: what knows its structure.
        attention: what its layers call.
        tracker: shared by the transformers of one pipeline.
        owner: the attachment it belongs to.
        layout: of the running forward; None between forwards.
        dense_reason: why the running forward stays dense as a whole; None when it need not.
        text_order: how the running forward's text is moved; see ``ModelFamily.text_order``.
        rows: B of the running forward.
        forwards: serial number of the running forward.
    """

    name: str
    family: ModelFamily
    attention: Attention
    tracker: StepTracker
    owner: object
    layout: VideoLayout | None = None
    dense_reason: str | None = None
    text_order: Tensor | None = None
    rows: int = 1
    forwards: int = 0
    _grid: tuple[int, int, int] | None = None

    def begin_forward(self, transformer: Any, inputs: dict[str, Any], pipeline: Any) -> None:
        """Note where the generation stands and how this forward's tokens lie."""
        _check_known(transformer, self.family, inputs)
        self.tracker.begin_forward(inputs.get("timestep"), self._clock(pipeline))
        self.rows = len(inputs["hidden_states"])
        self.layout = _for_rows(self.family.layout(transformer, inputs), self.rows)
        order = self.family.text_order(inputs)
        self.text_order = None if order is None else order.expand(self.rows, -1)
        self.dense_reason = self.family.dense_reason(inputs) or perturbation(transformer)
        self.forwards += 1
        if self._grid not in (None, self.layout.grid):
            self.attention.reset()
        self._grid = self.layout.grid

    def end_forward(self) -> None:
        """Note that the forward returned."""
        self.tracker.end_forward()
        self.layout = None

    def _clock(self, pipeline: Any) -> Clock:
        family = self.family
        return clock_of(pipeline, time_rises=family.time_rises, time_scale=family.time_scale)


@dataclass(eq=False)
class AttachedLayer:
    """One video self-attention; what the processor's handle leads to.

    Attributes:
        transformer: the one it belongs to.
        original: diffusers' processor, asked for its backend when a call stays dense.
        index: among the video self-attentions of its transformer, in order of execution.
        num_layers: how many there are.
    """

    transformer: AttachedTransformer
    original: Processor
    index: int
    num_layers: int
    _forward: int = field(default=-1, repr=False)
    _row: int = field(default=0, repr=False)

    @property
    def owner(self) -> object:
        """The attachment this layer belongs to."""
        return self.transformer.owner

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend through the attached callable: (B, S, H, D) in, contiguous (B, S, H, D) out."""
        kind = q.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return self._attend_as_given(q, k, v, mask)
        # As autocast does to dense attention; within it planning would lose its float32.
        dtype = torch.get_autocast_dtype(kind)
        q, k, v = (x if x.dtype is torch.float64 else x.to(dtype) for x in (q, k, v))
        with torch.autocast(kind, enabled=False):
            return self._attend_as_given(q, k, v, mask)

    def _attend_as_given(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        running = self.transformer
        layout, site = self._layout(q.shape[1]), self._site(q.shape[0])
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        dense = self._dense(mask, layout)
        reason = running.dense_reason or _unexplained(mask, layout)
        if reason is not None:
            running.attention.recorder.record_dense(reason, site)
            out = dense(q, k, v)
        else:
            order = running.text_order if layout is running.layout else None
            out = self._attend(q, k, v, layout, site, dense, order)
        return out.transpose(1, 2).contiguous()

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: VideoLayout,
        site: CallSite,
        dense: DenseOp,
        order: Tensor | None,
    ) -> Tensor:
        attention, start = self.transformer.attention, layout.video_end
        if order is None:
            return attention(q, k, v, layout=layout, site=site, dense=dense)

        # The mask is in the natural order, so dense calls see the tokens as they came.
        def dense_in_order(*_: Tensor) -> Tensor:
            return move_text(dense(q, k, v), order, start)

        moved = (move_text(x, order, start) for x in (q, k, v))
        return move_back(
            attention(*moved, layout=layout, site=site, dense=dense_in_order), order, start
        )

    def _dense(self, mask: Tensor | None, layout: VideoLayout) -> DenseOp:
        dense = partial(dense_attention, self.original, mask=mask)
        if not self.transformer.family.cuts_padding or layout.text_valid is None:
            return dense
        return partial(_without_padding, dense, layout)

    def _layout(self, num_tokens: int) -> VideoLayout:
        running = self.transformer
        if running.layout is None:
            raise UsageError(
                f"a layer of {running.name} ran outside it; call the transformer itself, not its "
                "forward() or its blocks, or call handle.disable() first"
            )
        return running.family.call_layout(running.layout, num_tokens)

    def _site(self, rows: int) -> CallSite:
        tracker = self.transformer.tracker
        return CallSite(
            transformer=self.transformer.name,
            layer=self.index,
            num_layers=self.num_layers,
            step=tracker.step,
            num_steps=tracker.num_steps,
            sigma=tracker.sigma,
            branch=self._branch(rows),
            generation=tracker.generation,
        )

    def _branch(self, rows: int) -> int:
        running = self.transformer
        if rows == running.rows:
            return running.tracker.branch
        # The processor takes one batch row at a time: each is a branch of its own.
        self._row = self._row + 1 if self._forward == running.forwards else 0
        self._forward = running.forwards
        return running.tracker.branch * running.rows + self._row


def _check_known(transformer: Any, family: ModelFamily, inputs: dict[str, Any]) -> None:
    for name, value in inputs.items():
        if value is not None and name not in family.arguments:
            raise UsageError(
                f"{type(transformer).__name__} of diffusers {diffusers_version()} was given "
                f"{name!r}, which vidsparse does not know and which may move tokens; call "
                "handle.disable() for this run"
            )


def _for_rows(layout: VideoLayout, rows: int) -> VideoLayout:
    """Let one text serve all rows, as the transformers' own broadcasting does."""
    if layout.text_valid is None or len(layout.text_valid) == rows:
        return layout
    if len(layout.text_valid) > 1:
        raise UsageError(
            f"a batch of {rows} came with the masks of {len(layout.text_valid)} texts; give one "
            "text for all, or one each"
        )
    return replace(layout, text_valid=layout.text_valid * rows)


def _unexplained(mask: Tensor | None, layout: VideoLayout) -> str | None:
    return "attention mask" if mask is not None and layout.text_valid is None else None


def _without_padding(
    dense: DenseOp, layout: VideoLayout, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Attend per batch row to its real tokens; padding gets zeros, as from an all-false mask."""
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    for row, valid in enumerate(layout.text_valid or ()):
        real = (slice(row, row + 1), slice(None), slice(0, layout.video_end + valid))
        out[real] = dense(q[real], k[real], v[real])
    return out
