"""Enable sparse attention on a diffusers pipeline, see what it did, and take it off again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vidsparse.attention import SparseAttention
from vidsparse.choices import check_impl, check_precision
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.fingerprint import check_model
from vidsparse.kernels.block_sparse_attention import Impl
from vidsparse.method_text import split_method
from vidsparse.methods.base import SparseMethod, build_method, check_given
from vidsparse.pipelines.attach import Attachment, attach, attachments_of
from vidsparse.pipelines.step_cache import enable_step_cache
from vidsparse.precision import Precision
from vidsparse.preset_parts import StepCache
from vidsparse.profiling.recorder import CallRecorder
from vidsparse.schedule import DenseSchedule

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class CallSummary:
    """What the attention calls of one attachment did.

    Attributes:
        method: name of the method.
        calls: attention calls.
        sparse_calls: those that skipped blocks.
        dense_calls: those that did not, by reason.
        density: mean kept share of the sparse calls in (0, 1]; None without any.
        overall_density: mean over all calls, dense ones counting 1; None without any.
        state_bytes: most memory that the method's states held between two steps: masks,
            log-sum-exps and centroids that wait for the next one.
        error_bound: mean over the sparse calls of the most that an attention output moved, in
            lengths of the longest value vector, if skipped blocks still hold what they held when
            they were dropped; None where the method does not know.
        note: why the counts may not be those of the pipeline; None as a rule.
    """

    method: str
    calls: int
    sparse_calls: int
    dense_calls: dict[str, int]
    density: float | None
    overall_density: float | None
    state_bytes: int = 0
    error_bound: float | None = None
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a small table."""
        rows = [("method", self.method, ""), ("calls", str(self.calls), "")]
        rows.append(("  sparse", str(self.sparse_calls), _density(self.density)))
        rows += [(f"  {why}", str(n), "dense") for why, n in self.dense_calls.items()]
        rows.append(("overall", "", _density(self.overall_density)))
        if self.state_bytes:
            rows.append(("state", f"{self.state_bytes / 2**20:.1f}", "MiB"))
        if self.error_bound is not None:
            rows.append(("error", f"{self.error_bound:.3f}", "at most, of the longest value"))
        if self.note is not None:
            rows.append(("note", "", self.note))
        width = max(len(name) for name, _, _ in rows)
        return "\n".join(f"{a:<{width}}  {b:>8}  {c}".rstrip() for a, b, c in rows)


class Handle:
    """Sparse attention on one pipeline or transformer; what ``enable`` returns.

    Attributes:
        method: what plans.
        schedule: what stays dense.
        recorder: counts, and one row per call with ``record_sites``.
    """

    def __init__(self, attention: SparseAttention, attachment: Attachment) -> None:
        self.method = attention.method
        self.schedule = attention.schedule
        self.recorder = attention.recorder
        self._attention = attention
        self._attachment = attachment

    def summary(self) -> CallSummary:
        """Return what happened since ``enable`` or ``reset_counts``; waits for the device."""
        recorder = self.recorder
        return CallSummary(
            method=self.method.name,
            calls=recorder.calls,
            sparse_calls=recorder.sparse_calls,
            dense_calls=dict(recorder.dense),
            density=recorder.sparse_density(),
            overall_density=recorder.overall_density(),
            state_bytes=self._attention.most_state_bytes(),
            error_bound=recorder.error_bound(),
            note=self._attachment.misses(),
        )

    def reset_counts(self) -> None:
        """Count from zero; memory from what the states hold now."""
        self.recorder.reset()
        self._attention.forget_most_bytes()

    @contextmanager
    def generation(self, *, num_steps: int | None = None) -> Iterator[None]:
        """Mark one generation of a hand-written sampling loop.

        Without it a generation begins where ``timestep`` rises.

        Args:
            num_steps: denoising steps of the loop; needed when ``dense_steps`` is a share.

        Raises:
            UsageError: ``num_steps`` is below 1.
        """
        if num_steps is not None and num_steps < 1:
            raise UsageError(f"num_steps={num_steps} must be at least 1")
        tracker = self._attachment.tracker
        tracker.restart(told=True, num_steps=num_steps)
        try:
            yield
        finally:
            tracker.restart()

    def disable(self) -> None:
        """Restore the processors, remove all hooks and the cache; harmless a second time."""
        self._attachment.detach()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *error: object) -> None:
        self.disable()


def enable(
    pipe_or_transformer: Any,
    method: str | SparseMethod | None = None,
    *,
    density: float | None = None,
    preset: str | Path | None = None,
    config: SparseConfig | None = None,
    dense_steps: float | int | None = None,
    dense_layers: float | int | None = None,
    dense_above_sigma: float | None = None,
    impl: str | Impl | None = None,
    precision: str | Precision | None = None,
    record_sites: bool = False,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Handle:
    """Replace the video self-attention of a pipeline by a sparse one.

    What is given here wins over the preset or config, which wins over the defaults.

    Args:
        pipe_or_transformer: a diffusers pipeline, or its transformer for a hand-written loop.
        method: name of a method, or one of your own; "svg" by default. Parameters go into
            ``parameters``, not behind the name.
        density: kept share of query-key pairs in (0, 1]; 1 is exact dense attention.
        preset: name or path of a preset; not together with ``config``.
        config: settings as an object.
        dense_steps: share (float) or count (int) of first steps that stay dense, 0.2 by default.
        dense_layers: share or count of first layers that stay dense, 0 by default.
        dense_above_sigma: steps with a noise level above this stay dense.
        impl: kernel implementation, "auto" by default.
        precision: "native" (the default), "8bit-sparse" for sparse calls in 8 bits, or "8bit" for
            dense calls too; about 4 % off exact attention and faster on Hopper and Ada.
        record_sites: keep one row per call in ``handle.recorder.rows``.
        parameters: further fields of the method, such as ``{"compensate": True}``; see
            ``vidsparse methods``.
        force: use a preset although it is for another model.

    Returns:
        A handle; usable in a ``with`` statement, which disables at its end.

    Raises:
        UsageError: an argument is unknown or out of range, a density would have no effect, or the
            preset is for another model.
        UnsupportedPipelineError: no model family knows the transformer.
        AlreadyEnabledError: it is enabled already.
    """
    if isinstance(method, str) and ":" in method:
        raise _command_line_form(method)
    if preset is not None and config is not None:
        raise UsageError("give either preset= or config=, not both")
    base = SparseConfig.load(preset) if preset is not None else config or SparseConfig()
    if base.model is not None and not force:
        check_model(base.model, pipe_or_transformer)
    schedule = DenseSchedule(
        dense_steps=_first(dense_steps, base.dense_steps),
        dense_layers=_first(dense_layers, base.dense_layers),
        dense_above_sigma=_first(dense_above_sigma, base.dense_above_sigma),
    )
    given = {**(parameters or {}), **({} if density is None else {"density": density})}
    chosen = _method(method, base, given)
    check_given(chosen, given)
    attention = SparseAttention(
        method=chosen,
        schedule=schedule,
        impl=Impl(check_impl(_first(impl, base.impl))),
        precision=Precision(check_precision(_first(precision, base.precision))),
        recorder=CallRecorder(keep_sites=record_sites),
    )
    attachment = attach(pipe_or_transformer, attention)
    if base.cache is not None:
        _add_cache(attachment, pipe_or_transformer, base.cache)
    return Handle(attention, attachment)


def _add_cache(attachment: Attachment, pipe_or_transformer: Any, cache: StepCache) -> None:
    try:
        attachment.when_detached(
            enable_step_cache(pipe_or_transformer, cache.name, cache.parameters)
        )
    except BaseException:
        attachment.detach()
        raise


def _temporarily(
    function: Callable[_P, Handle],
) -> Callable[_P, AbstractContextManager[Handle]]:
    @contextmanager
    @wraps(function)
    def manager(*args: _P.args, **kwargs: _P.kwargs) -> Iterator[Handle]:
        with function(*args, **kwargs) as handle:
            yield handle

    return manager


enabled = _temporarily(enable)
"""Do as ``enable`` for the body of a ``with`` statement; same arguments and errors."""


def disable(pipe_or_transformer: Any) -> None:
    """Disable without a handle; harmless where nothing is enabled.

    A transformer that the pipeline held when it was enabled is freed too.

    Raises:
        UnsupportedPipelineError: no model family knows the transformer.
    """
    for attachment in attachments_of(pipe_or_transformer):
        attachment.detach()


def _command_line_form(text: str) -> UsageError:
    """Translate ``name:key=value`` into this function's arguments."""
    name, values = split_method(text)
    arguments = ("density", "dense_steps", "dense_layers", "precision")
    options = [f"method={name!r}"]
    options += [f"{key}={values.pop(key)!r}" for key in arguments if key in values]
    options += [f"parameters={values!r}"] if values else []
    return UsageError(f"{text!r} is the command line's form; in Python: {', '.join(options)}")


def _method(
    method: str | SparseMethod | None, base: SparseConfig, given: dict[str, Any]
) -> SparseMethod:
    if isinstance(method, SparseMethod):
        return _replace(method, given)
    if method is None or method == base.method:
        made = build_method(base.method, {**base.parameters, **given})
        # A density that is asked for replaces those of the bands.
        return made if "density" in given else base.banded(made)
    # The preset's parameters belong to its own method; only its schedule holds for another one.
    return build_method(method, given)


def _replace(method: SparseMethod, given: dict[str, Any]) -> SparseMethod:
    known = [field.name for field in fields(method)]
    for key in given:
        if key not in known:
            raise UsageError(
                f"method {method.name!r} has no parameter {key!r}; it has {', '.join(known)}"
            )
    return replace(method, **given)


def _density(value: float | None) -> str:
    return "" if value is None else f"density {value:.3f}"


def _first(given: _T | None, otherwise: _T) -> _T:
    return otherwise if given is None else given
