"""Subclass diffusers' attention processors so that only their attention op is swapped."""

import copy
import functools
import itertools
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from vidsparse.errors import UnsupportedPipelineError, UsageError
from vidsparse.pipelines.perturbation import scores_are_skipped


class Layer(Protocol):
    """What stands behind a handle: decides at run time how one attention call is done."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend: (B, S, H, D) in, contiguous (B, S, H, D) out."""


_LAYERS: weakref.WeakValueDictionary[int, Layer] = weakref.WeakValueDictionary()
_NEXT_HANDLE = itertools.count()


# Opaque to the compiler. The handle is a tensor because a Python int would be burnt into the graph
# and give one graph per layer; step and branch are looked up behind it and never traced.
@torch.library.custom_op("vidsparse::attention", mutates_args=())
def attention_op(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, handle: Tensor) -> Tensor:
    """Attend with the layer behind ``handle``, a 0-dim int64 CPU tensor: (B, S, H, D) each."""
    return _LAYERS[int(handle)].attend(q, k, v, mask)


@attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, handle: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:-1], v.shape[-1])


class _EagerSlot(threading.local):
    handle: Tensor | None = None


_EAGER = _EagerSlot()
_TRACED: list[Tensor | None] = [None]


def _put_handle(handle: Tensor) -> None:
    # Pipelines may run in threads; a compiler traces alone and follows lists, not thread locals.
    if torch.compiler.is_compiling():
        _TRACED[0] = handle
    else:
        _EAGER.handle = handle


def _handle() -> Tensor:
    handle = _TRACED[0] if torch.compiler.is_compiling() else _EAGER.handle
    if handle is None:
        raise RuntimeError("an attached processor's op ran outside that processor")
    return handle


def swapped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with the layer of the attached processor that is running: (B, S, H, D) each."""
    handle = _handle()
    # Guiders that put values in the place of attention watch torch's function, not our op.
    if not torch.compiler.is_compiling() and scores_are_skipped():
        return _LAYERS[int(handle)].attend(q, k, v, mask)
    out: Tensor = attention_op(q, k, v, mask, handle)
    return out


def _refuse(given: dict[str, object]) -> None:
    for name, value in given.items():
        if value:
            raise UsageError(
                f"a video self-attention was called with {name}, which sparse attention cannot "
                "honour; call handle.disable() for this run"
            )


def _dispatch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: object | None = None,
    parallel_config: object | None = None,
) -> Tensor:
    """Stand in for diffusers' ``dispatch_attention_fn``: (B, S, H, D); the layer knows backends."""
    _refuse({"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale})
    _refuse({"enable_gqa": enable_gqa, "attention_kwargs": attention_kwargs})
    _refuse({"parallel_config": parallel_config})
    return swapped_attention(query, key, value, attn_mask)


def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Stand in for torch's function of that name: (B, H, S, D)."""
    _refuse({"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale})
    _refuse({"enable_gqa": enable_gqa})
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return swapped_attention(q, k, v, attn_mask).transpose(1, 2)


_FUNCTIONAL = types.SimpleNamespace(**vars(torch.nn.functional))
_FUNCTIONAL.scaled_dot_product_attention = _scaled_dot_product_attention

Processor = Any
_Body = Callable[..., Any]
_CLASSES: dict[tuple[type, _Body], type] = {}


def attach_processor(original: Processor, layer: Layer, body: _Body | None = None) -> Processor:
    """Return a stand-in for a diffusers processor that attends through ``layer``.

    It shares the original's attributes, so that what diffusers sets on it (a backend, say) lives
    on when the original comes back.

    Args:
        original: the processor.
        layer: what its attention op leads to.
        body: runs in the place of its ``__call__``; None for its own code.

    Raises:
        UnsupportedPipelineError: the processor calls no attention op we can swap.
    """
    attached: Processor = object.__new__(_attached_class(type(original), body))
    attached.__dict__ = original.__dict__
    number = next(_NEXT_HANDLE)
    _LAYERS[number] = layer
    attached.vidsparse_handle = torch.tensor(number, device="cpu")
    attached.vidsparse_layer, attached.vidsparse_original = layer, original
    return attached


def is_attached(processor: Processor) -> bool:
    """Say whether ``attach_processor`` made this one."""
    return type(processor) in _CLASSES.values()


def dense_attention(
    processor: Processor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """Do what the original processor would have called, with its backend and its layout.

    Args:
        processor: the original.
        q: (B, H, S, D) queries.
        k: (B, H, S, D) keys.
        v: (B, H, S, D) values.
        mask: as the model gave it.

    Returns:
        (B, H, S, D).
    """
    body = _body(type(processor))
    if "dispatch_attention_fn" not in body.__code__.co_names:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    backend = getattr(processor, "_attention_backend", None)
    out: Tensor = body.__globals__["dispatch_attention_fn"](q, k, v, mask, backend=backend)
    return out.transpose(1, 2)


def _attached_class(cls: type, body: _Body | None) -> type:
    # One class per processor class: one per instance would compile one graph per layer.
    key = cls, body or _body(cls)
    if key not in _CLASSES:
        _CLASSES[key] = _make_class(cls, body or _rebind(cls))
    return _CLASSES[key]


def _make_class(cls: type, body: _Body) -> type:

    # The original's signature matters: diffusers drops keyword arguments it does not find there.
    @functools.wraps(cls.__call__)
    def call(self: Processor, *args: Any, **kwargs: Any) -> Any:
        _put_handle(self.vidsparse_handle)
        return body(self, *args, **kwargs)

    def deepcopy(self: Processor, memo: dict[int, Any]) -> Processor:
        # A copied pipeline is not attached: its layers must never answer for this one's.
        return copy.deepcopy(self.vidsparse_original, memo)

    slots = ("vidsparse_handle", "vidsparse_layer", "vidsparse_original")
    members = {"__slots__": slots, "__call__": call, "__deepcopy__": deepcopy}
    return type(f"Sparse{cls.__name__}", (cls,), members)


def _body(cls: type) -> types.FunctionType:
    body = cls.__call__
    if not isinstance(body, types.FunctionType):
        raise UnsupportedPipelineError(f"attention processor {cls.__name__} is no plain class")
    return body


def _rebind(cls: type) -> types.FunctionType:
    """Return the processor's own code seeing our op where it looks its attention op up."""
    body = _body(cls)
    names = {**body.__globals__}
    # Without a module name the compiler guards on these globals, not on the module's.
    names.pop("__name__")
    if "dispatch_attention_fn" in body.__code__.co_names:
        names["dispatch_attention_fn"] = _dispatch_attention
    elif "scaled_dot_product_attention" in body.__code__.co_names:
        names["F"] = _FUNCTIONAL
    else:
        raise UnsupportedPipelineError(
            f"attention processor {cls.__name__} calls neither diffusers' dispatcher nor "
            "scaled_dot_product_attention; set diffusers' default processors before enabling"
        )
    code = types.FunctionType(
        body.__code__, names, body.__name__, body.__defaults__, body.__closure__
    )
    code.__kwdefaults__ = body.__kwdefaults__
    return code
