"""Run a method's plan, and join one method with its states."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vidsparse.kernels.block_sparse_attention import (
    AttentionOutput,
    Impl,
    MovedHeads,
    block_sparse_attention,
    restore_attention,
)
from vidsparse.kernels.permute import restore_tokens
from vidsparse.layout import VideoLayout
from vidsparse.methods.base import SparseMethod
from vidsparse.plan import AttentionPlan, CallSite
from vidsparse.precision import Precision, attend_8bit, attend_densely_8bit
from vidsparse.profiling.recorder import CallRecorder
from vidsparse.schedule import DenseSchedule

DenseOp = Callable[[Tensor, Tensor, Tensor], Tensor]

# Below this many tokens one block holds most of the sequence and planning costs more than it saves.
SHORT_SEQUENCE = 256


@dataclass(frozen=True)
class _Took:
    """How a call was made: densely for a reason, or with a density and what bounds its error."""

    dense_reason: str | None
    density: Tensor | None = None
    error_bound: Tensor | None = None


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to everything with torch's default backend: (B, H, S, D) in and out."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def run_plan(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, *, impl: Impl = Impl.AUTO
) -> AttentionOutput:
    """Permute, attend to the kept blocks, restore: the plan alone, without anchor or correction.

    Args:
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        v: (B, H, S, D) values.
        plan: token orders and block mask.
        impl: kernel implementation.

    Returns:
        Output (B, H, S, D) and log-sum-exp (B, H, S), both in natural order.

    Raises:
        ValueError: the kernel does not support the inputs.
    """
    moved = plan.moved(k, v)
    if moved is not None:
        return attend_in_order(q, k, v, plan, impl=impl, moved=moved)
    output = attend_permuted(q, k, v, plan, impl=impl)
    return restore_output(output, plan)


def attend_and_learn(
    method: SparseMethod,
    plan: AttentionPlan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    site: CallSite,
    state: Any,
    *,
    impl: Impl = Impl.AUTO,
    eight_bit: bool = False,
    dense: DenseOp = dense_attention,
    mark: Callable[[str], None] = lambda part: None,
) -> Tensor:
    """Make one call as it was planned, and let the method see what came of it.

    Args:
        method: what planned.
        plan: what ``method.decide`` returned for this call.
        q: (B, H, S, D) queries in natural order.
        k: (B, H, S, D) keys.
        v: (B, H, S, D) values.
        site: the call.
        state: the method's.
        impl: kernel implementation.
        eight_bit: multiply in 8 bits.
        dense: dense attention, for plans with an anchor.
        mark: called when a part has been queued: permute, kernel, observe, restore.

    Returns:
        (B, H, S, D) in natural order; dense attention's where the plan has an anchor.
    """
    moved = None if eight_bit else plan.moved(k, v)
    tokens = (q, k, v) if moved is not None else plan.in_order(q, k, v)
    mark("permute")
    if eight_bit:
        output = attend_8bit(*tokens, plan, impl=impl)
    else:
        output = attend_in_order(*tokens, plan, impl=impl, moved=moved)
    mark("kernel")
    method.observe(output, plan, site, state)
    mark("observe")
    # Nobody reads the LSE any more.
    out = output.out if moved is not None else restore_tokens(output.out, plan.q_order)
    if plan.correction is not None and not plan.anchor:
        out = out + plan.correction
    mark("restore")
    if not plan.anchor:
        return out
    exact = dense(q, k, v)
    method.compare(exact, out, plan, site, state)
    mark("observe")
    return exact


def attend_permuted(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, *, impl: Impl = Impl.AUTO
) -> AttentionOutput:
    """Do as ``run_plan``, leaving the output in the plan's query order."""
    q, k, v = plan.in_order(q, k, v)
    return attend_in_order(q, k, v, plan, impl=impl)


def attend_in_order(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    *,
    impl: Impl = Impl.AUTO,
    moved: MovedHeads | None = None,
) -> AttentionOutput:
    """Do as ``attend_permuted`` with tokens that are in the plan's orders already.

    With ``moved``, which is ``plan.moved(k, v)``, tokens and output are in natural order instead.
    """
    return block_sparse_attention(
        q,
        k,
        v,
        plan.mask,
        impl=impl,
        stats_lse=plan.stats_lse,
        running=plan.running,
        compensate=plan.compensate,
        tangents=plan.tangents,
        moved=moved,
    )


def restore_output(output: AttentionOutput, plan: AttentionPlan) -> AttentionOutput:
    """Bring an output from the plan's query order back to the natural one."""
    return restore_attention(output, plan.q_order)


@dataclass
class SparseAttention:
    """One method with its states: the callable that replaces dense attention.

    States are kept per shape and what the method's ``state_key`` says, by default transformer,
    layer and branch; they are dropped when the generation changes, so that one video never leaks
    into the next.

    Attributes:
        method: what plans.
        schedule: which steps and layers stay dense.
        impl: kernel implementation.
        recorder: counts calls and densities.
        precision: in how many bits sparse and dense calls are computed.
    """

    method: SparseMethod
    schedule: DenseSchedule = field(default_factory=DenseSchedule)
    impl: Impl = Impl.AUTO
    recorder: CallRecorder = field(default_factory=CallRecorder)
    precision: Precision = Precision.NATIVE
    _states: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    _generation: int = -1
    _step: int = -1
    _most_bytes: int = 0

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        layout: VideoLayout,
        site: CallSite,
        dense: DenseOp = dense_attention,
    ) -> Tensor:
        """Attend sparsely where the schedule and the method allow it.

        Args:
            q: (B, H, S, D) queries, float16, bfloat16 or float32.
            k: (B, H, S, D) keys.
            v: (B, H, S, D) values.
            layout: where text and video lie in S.
            site: layer, step, branch and generation.
            dense: what to call when this call stays dense, (B, H, S, D) in and out.

        Returns:
            (B, H, S, D), dtype of ``q``.

        Raises:
            ValueError: S or B is not what the layout says.
        """
        if layout.text_valid is not None and len(layout.text_valid) != len(q):
            raise ValueError(
                f"{site}: q has {len(q)} rows, but the layout {len(layout.text_valid)}: {layout}"
            )
        if q.shape[2] != layout.num_tokens or k.shape[2] != layout.num_tokens:
            raise ValueError(
                f"{site}: q has {q.shape[2]} and k has {k.shape[2]} tokens, "
                f"but the layout has {layout.num_tokens}: {layout}"
            )
        if site.generation != self._generation:
            self.reset()
            self._generation = site.generation
        elif site.step != self._step:
            self._most_bytes = self.most_state_bytes()
        self._step = site.step
        first = self.schedule.first_sparse_layer(site.num_layers)
        site = replace(site, first_sparse_layer=first)
        reason = self._dense_reason(layout, site)
        if reason is not None:
            self.recorder.record_dense(reason, site)
        if reason is not None and self.precision is not Precision.ALL_8BIT:
            return dense(q, k, v)
        if self.precision is Precision.ALL_8BIT:
            dense = attend_densely_8bit
        if layout.text_valid is not None:
            return self._attend_without_padding(q, k, v, layout, site, reason)
        if reason is not None:
            return dense(q, k, v)
        out, took = self._attend(q, k, v, layout, site, dense)
        self._record([took], site)
        return out

    def reset(self) -> None:
        """Drop all states, as a new generation does."""
        self._most_bytes = self.most_state_bytes()
        self._states.clear()

    def state_bytes(self) -> int:
        """Return the bytes that the states hold now."""
        return sum(self.method.state_bytes(state) for state in self._states.values())

    def most_state_bytes(self) -> int:
        """Return the most bytes that the states held between two steps."""
        return max(self._most_bytes, self.state_bytes())

    def forget_most_bytes(self) -> None:
        """Let ``most_state_bytes`` begin anew, from what the states hold now."""
        self._most_bytes = 0

    def _dense_reason(self, layout: VideoLayout, site: CallSite) -> str | None:
        if self.method.density >= 1:
            return "density 1"
        if layout.num_tokens < SHORT_SEQUENCE:
            return "short sequence"
        return self.schedule.reason(site)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: VideoLayout,
        site: CallSite,
        dense: DenseOp,
        row: int | None = None,
    ) -> tuple[Tensor, "_Took"]:
        state = self._state(q, site, row)
        plan = self.method.decide(q, k, v, layout, site, state)
        self.recorder.mark("plan")
        if plan is None:
            return dense(q, k, v), _Took(f"{self.method.name} asked for it")
        out = attend_and_learn(
            self.method, plan, q, k, v, site, state, impl=self.impl,
            eight_bit=not self._is_native(plan), dense=dense, mark=self.recorder.mark,
        )  # fmt: skip
        if plan.dense_reason is not None:
            return out, _Took(plan.dense_reason)
        return out, _Took(None, plan.density(), plan.error_bound)

    def _record(self, rows: list["_Took"], site: CallSite) -> None:
        """Count one call, by the mean over its batch rows where these differ."""
        densities = [row.density for row in rows if row.density is not None]
        if not densities:
            self.recorder.record_dense(rows[0].dense_reason or "", site)
            return
        bounds = [row.error_bound for row in rows if row.error_bound is not None]
        density, bound = densities[0], bounds[0] if bounds else None
        if len(rows) > 1:
            density = (torch.stack(densities).sum() + len(rows) - len(densities)) / len(rows)
            bound = torch.stack(bounds).mean() if bounds else None
        self.recorder.record_sparse(density, site, error_bound=bound)

    def _is_native(self, plan: AttentionPlan) -> bool:
        # A plan that keeps every block, to look at them, is no sparse call.
        looks = plan.dense_reason is not None and self.precision is Precision.SPARSE_8BIT
        return looks or self.precision is Precision.NATIVE

    def _attend_without_padding(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: VideoLayout,
        site: CallSite,
        dense_reason: str | None,
    ) -> Tensor:
        """Attend per batch row to its own valid tokens; padding text sees only padding."""
        all_8bit = self.precision is Precision.ALL_8BIT
        dense = attend_densely_8bit if all_8bit else dense_attention
        out, rows = torch.empty_like(q), []
        for row, valid in enumerate(layout.text_valid or ()):
            end = layout.video_end + valid
            real = (slice(row, row + 1), slice(None), slice(0, end))
            rest = (slice(row, row + 1), slice(None), slice(end, None))
            tokens = q[real], k[real], v[real]
            trimmed = layout.without_padding(valid)
            if dense_reason is not None:
                out[real] = dense(*tokens)
            else:
                out[real], took = self._attend(*tokens, trimmed, site, dense, row)
                rows.append(took)
            if end < q.shape[2]:
                out[rest] = dense_attention(q[rest], k[rest], v[rest])
        if rows:
            self._record(rows, site)
        return out

    def _state(self, q: Tensor, site: CallSite, row: int | None) -> Any:
        key = (self.method.state_key(site), row, tuple(q.shape))
        if key not in self._states:
            self._states[key] = self.method.init_state()
        return self._states[key]
