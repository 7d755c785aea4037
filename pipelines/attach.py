"""Attach a callable to the video self-attentions of a pipeline, and take it off again."""

import inspect
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vidsparse.errors import AlreadyEnabledError, UnsupportedPipelineError, UsageError
from vidsparse.pipelines.base import (
    ModelFamily,
    diffusers_version,
    family_of,
    supported_pipelines,
)
from vidsparse.pipelines.layers import AttachedLayer, AttachedTransformer, Attention
from vidsparse.pipelines.processors import attach_processor, is_attached
from vidsparse.pipelines.tracker import StepTracker

_NAMES = ("transformer", "transformer_2")
_LOCK = threading.RLock()


@dataclass(eq=False)
class Attachment:
    """Everything that was put on one pipeline or bare transformer.

    Modules point to it, it points back weakly: dropping the pipeline frees its memory at once. Only
    what ``when_detached`` is given may hold modules, as diffusers' own step caches do.

    Attributes:
        attention: what the layers call.
        target: weakly, what it was put on.
        tracker: where the generation stands.
    """

    attention: Attention
    target: Callable[[], Any]
    tracker: StepTracker = field(default_factory=StepTracker)
    _transformers: list[weakref.ref[nn.Module]] = field(default_factory=list)
    _modules: list[weakref.ref[nn.Module]] = field(default_factory=list)
    _hooks: list[RemovableHandle] = field(default_factory=list)
    _undo: ExitStack = field(default_factory=ExitStack)

    def add(self, name: str, transformer: nn.Module, pipeline: Callable[[], Any]) -> None:
        """Attach to one transformer.

        Args:
            name: its attribute name in the pipeline.
            transformer: the model, compiled or not.
            pipeline: returns the pipeline around it, or None.

        Raises:
            UnsupportedPipelineError: no family knows it, or a processor is foreign.
        """
        inner = _unwrap(transformer)
        family = family_of(inner)
        running = AttachedTransformer(name, family, self.attention, self.tracker, self)
        modules = _self_attentions(family, inner)
        self._transformers.append(weakref.ref(inner))
        for index, module in enumerate(modules):
            layer = AttachedLayer(running, module.processor, index, len(modules))
            body = family.processor_body(type(module.processor))
            # Known before it is changed: an interrupt in between leaves nothing behind.
            self._modules.append(weakref.ref(module))
            module.processor = attach_processor(module.processor, layer, body)
        self._hook(transformer, running, pipeline)

    def when_detached(self, undo: Callable[[], None]) -> None:
        """Let ``detach`` also undo something that was switched on with the attachment."""
        self._undo.callback(undo)

    def detach(self) -> None:
        """Put back the original processors, remove hooks, undo the rest; harmless a second time."""
        for hook in self._hooks:
            hook.remove()
        for module in _alive(self._modules):
            # A processor that someone put there since is theirs to keep.
            if self._is_own(module.processor):
                module.processor = module.processor.vidsparse_original
        with _LOCK:
            _ATTACHMENTS.discard(self)
        self._hooks.clear()
        self._transformers.clear()
        self._modules.clear()
        self.attention.reset()
        self._undo.close()

    def is_on(self, pipe_or_transformer: Any) -> bool:
        """Say whether it was put on this, or on a transformer that this holds now."""
        attached = _alive(self._transformers)
        if attached and self.target() is pipe_or_transformer:
            return True
        return any(_among(module, _held(pipe_or_transformer)) for module in attached)

    def misses(self) -> str | None:
        """Say that the pipeline lost a transformer since; None where it holds them all."""
        target = self.target()
        if target is None:
            return None
        held, attached = _held(target), [reference() for reference in self._transformers]
        if all(module is not None and _among(module, held) for module in attached):
            return None
        return (
            f"this {type(target).__name__} no longer holds a transformer that sparse attention is "
            "enabled on; call handle.disable() or vidsparse.disable(...), then enable it again"
        )

    def _is_own(self, processor: Any) -> bool:
        return is_attached(processor) and processor.vidsparse_layer.owner is self

    # torch's own hooks: diffusers' vanish when accelerate re-installs an offload hook.
    def _hook(
        self, outer: nn.Module, running: AttachedTransformer, pipeline: Callable[[], Any]
    ) -> None:
        signature = _signature(running.family, _unwrap(outer))
        attached = weakref.ref(outer)

        # A copied module keeps the hooks, but not the processors: its forwards are not ours.
        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is not attached():
                return
            self._check_processors()
            inputs = signature.bind_partial(None, *args, **kwargs).arguments
            running.begin_forward(_unwrap(module), inputs, pipeline())

        def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module is attached():
                running.end_forward()

        # A model compiled in place has its hooks traced too; these must run as they are.
        begin, end = torch.compiler.disable(begin), torch.compiler.disable(end)
        self._hooks.append(outer.register_forward_pre_hook(begin, with_kwargs=True))
        self._hooks.append(outer.register_forward_hook(end))

    def _check_processors(self) -> None:
        if not all(self._is_own(module.processor) for module in _alive(self._modules)):
            raise UsageError(
                "attention processors were replaced after sparse attention was enabled (by "
                "fuse_qkv_projections()?); call handle.disable() and enable it again"
            )


# Processors may be replaced and pipelines may lose their transformers: neither tells who is on.
_ATTACHMENTS: weakref.WeakSet[Attachment] = weakref.WeakSet()


def attach(pipe_or_transformer: Any, attention: Attention) -> Attachment:
    """Let the video self-attentions of a pipeline or bare transformer call ``attention``.

    Args:
        pipe_or_transformer: a diffusers pipeline with a supported transformer, or one alone.
        attention: called instead of diffusers' attention op.

    Returns:
        What ``detach`` takes off again.

    Raises:
        UnsupportedPipelineError: no family knows the transformer, or a processor is foreign.
        AlreadyEnabledError: something is attached already.
    """
    transformers = _transformers_of(pipe_or_transformer)
    for other in attachments_of(pipe_or_transformer):
        raise AlreadyEnabledError(
            other.misses()
            or f"sparse attention is already enabled on this {type(pipe_or_transformer).__name__}; "
            "call disable() on its handle, or vidsparse.disable(...) without one"
        )
    pipeline = _pipeline_reference(pipe_or_transformer)
    attachment = Attachment(attention, weakref.ref(pipe_or_transformer))
    try:
        with _LOCK:
            _ATTACHMENTS.add(attachment)
        for name, transformer in transformers.items():
            attachment.add(name, transformer, pipeline)
    except BaseException:
        attachment.detach()
        raise
    return attachment


def attachments_of(pipe_or_transformer: Any) -> list[Attachment]:
    """Return what is attached to a pipeline or bare transformer, as a rule one or none.

    Raises:
        UnsupportedPipelineError: no family knows a transformer.
    """
    with _LOCK:
        attachments = list(_ATTACHMENTS)
    found = [each for each in attachments if each.is_on(pipe_or_transformer)]
    if not found:
        for transformer in _transformers_of(pipe_or_transformer).values():
            family_of(_unwrap(transformer))
    return found


def _self_attentions(family: ModelFamily, transformer: nn.Module) -> list[Any]:
    try:
        modules: list[Any] = list(family.self_attentions(transformer))
        for module in modules:
            _ = module.processor
    except AttributeError as error:
        raise _changed(transformer, str(error)) from error
    return modules


def _signature(family: ModelFamily, transformer: nn.Module) -> inspect.Signature:
    """Return how ``forward`` is called; it must still take what the family reads."""
    signature = inspect.signature(type(transformer).forward)
    missing = [name for name in family.reads if name not in signature.parameters]
    if missing:
        raise _changed(transformer, f"its forward has no argument {', '.join(missing)}")
    return signature


def _changed(transformer: nn.Module, why: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(
        f"{type(transformer).__name__} of diffusers {diffusers_version()} is not the one "
        f"vidsparse knows: {why}; use diffusers 0.42, or run it without sparse attention"
    )


def _transformers_of(pipe_or_transformer: Any) -> dict[str, nn.Module]:
    transformers = _held(pipe_or_transformer)
    if not transformers:
        raise UnsupportedPipelineError(
            f"{type(pipe_or_transformer).__name__} has no video transformer; supported pipelines "
            f"are {', '.join(supported_pipelines())}"
        )
    return transformers


def _held(pipe_or_transformer: Any) -> dict[str, nn.Module]:
    if isinstance(pipe_or_transformer, nn.Module):
        return {_NAMES[0]: pipe_or_transformer}
    found: dict[str, nn.Module] = {}
    for name in _NAMES:
        each = getattr(pipe_or_transformer, name, None)
        # One model may have both names.
        if isinstance(each, nn.Module) and not _among(_unwrap(each), found):
            found[name] = each
    return found


def _among(module: nn.Module, held: dict[str, nn.Module]) -> bool:
    # It may have been wrapped since it was attached.
    return any(module is each for outer in held.values() for each in outer.modules())


def _alive(references: list[weakref.ref[nn.Module]]) -> list[Any]:
    modules = [reference() for reference in references]
    return [module for module in modules if module is not None]


def _pipeline_reference(pipe_or_transformer: Any) -> Callable[[], Any]:
    if isinstance(pipe_or_transformer, nn.Module):
        return lambda: None
    return _WeakPipeline(pipe_or_transformer)


class _WeakPipeline:
    """Return a pipeline; after it was dropped, what is left: its scheduler still tells the steps.

    Others may go on with its components.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = weakref.ref(pipeline)
        self._left = SimpleNamespace(scheduler=getattr(pipeline, "scheduler", None))

    def __call__(self) -> Any:
        pipeline = self._pipeline()
        if pipeline is None:
            return self._left
        self._left.scheduler = getattr(pipeline, "scheduler", None)
        return pipeline


def _unwrap(transformer: Any) -> nn.Module:
    """Return the model inside ``torch.compile(model)``; its hooks are the outer object's."""
    inner: nn.Module = getattr(transformer, "_orig_mod", transformer)
    return inner
