"""Diffusers' step caches beside sparse attention: which there are, and switching them."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any

from vidsparse.errors import UsageError, did_you_mean, first_line


@dataclass(frozen=True)
class CacheKind:
    """One of diffusers' caches.

    Attributes:
        config: name of its configuration class in diffusers.
        ladder: settings ``tune`` tries, from the least to the most work skipped.
        defaults: our values where the user gives none.
        batched_guidance: works only where both branches of the guidance are one batch, since it
            keeps one state for all calls of a module.
        asks_timestep: its configuration wants a callback for the current timestep, which only a
            pipeline can tell.
    """

    config: str
    ladder: tuple[Mapping[str, Any], ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    batched_guidance: bool = False
    asks_timestep: bool = False


def _ladder(name: str, values: tuple[Any, ...]) -> tuple[Mapping[str, Any], ...]:
    return tuple({name: value} for value in values)


KINDS = {
    "first_block": CacheKind(
        "FirstBlockCacheConfig", _ladder("threshold", (0.02, 0.04, 0.07, 0.1, 0.15, 0.25))
    ),
    # Whole blocks, since the default patterns find no self-attention in Wan and others.
    "taylorseer": CacheKind(
        "TaylorSeerCacheConfig",
        _ladder("cache_interval", (2, 3, 4, 5)),
        # Factors are differences of nearly equal tensors: bfloat16, diffusers' default, loses them.
        defaults={"use_lite_mode": True, "taylor_factors_dtype": "float32"},
    ),
    "pab": CacheKind(
        "PyramidAttentionBroadcastConfig",
        _ladder("spatial_attention_block_skip_range", (2, 3, 4)),
        batched_guidance=True,
        asks_timestep=True,
    ),
}
# Transformers whose pipelines all run both branches of the guidance as one batch.
BATCHED_GUIDANCE = (
    "AllegroTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "MochiTransformer3DModel",
)
# Caches of diffusers that cannot be switched on by settings alone, and why.
EXCLUDED = {
    "mag_cache": "its ratios must be calibrated for the model and the number of steps",
    "sea_cache": "it needs a callback that returns the model's latents",
    "faster_cache": "it needs callbacks written for the model",
}


def enable_step_cache(pipe: Any, name: str, parameters: Mapping[str, Any]) -> Callable[[], None]:
    """Switch a step cache on in every transformer of a pipeline.

    Args:
        pipe: a diffusers pipeline, or a transformer.
        name: one of ``KINDS``.
        parameters: fields of the diffusers configuration.

    Returns:
        What switches it off again; harmless a second time.

    Raises:
        UsageError: the cache or a parameter is unknown, the model does not support it, or another
            cache is on.
    """
    transformers = _transformers(pipe)
    cls = check_kind(name, parameters)
    for transformer in transformers:
        _check(transformer)
        _check_fits(pipe, transformer, name)
    with ExitStack() as undo:
        for transformer in transformers:
            _switch_on(transformer, name, cls(**_values(pipe, name, parameters)))
            undo.callback(transformer.disable_cache)
        return undo.pop_all().close


def _switch_on(transformer: Any, name: str, config: Any) -> None:
    try:
        transformer.enable_cache(config)
    except ValueError as error:
        raise UsageError(
            f"step cache {name!r} does not work on {_class_name(transformer)}: {first_line(error)}"
        ) from error


def _transformers(pipe: Any) -> list[Any]:
    if hasattr(pipe, "enable_cache"):
        return [pipe]
    found = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    # One transformer may have both names.
    return list({id(each): each for each in found if each is not None}.values())


def check_kind(name: str, parameters: Mapping[str, Any]) -> type:
    """Refuse what can be refused without a model.

    Returns:
        The configuration class of diffusers.

    Raises:
        UsageError: the cache or a parameter is unknown, or this diffusers does not have it.
    """
    import diffusers

    if name in EXCLUDED:
        raise UsageError(f"step cache {name!r} is not supported: {EXCLUDED[name]}")
    if name not in KINDS:
        raise UsageError(
            f"unknown step cache {name!r}{did_you_mean(name, KINDS)}; use one of {', '.join(KINDS)}"
        )
    cls: type | None = getattr(diffusers, KINDS[name].config, None)
    if cls is None:
        raise UsageError(
            f"diffusers {diffusers.__version__} has no {KINDS[name].config}; update it"
        )
    known = [each.name for each in fields(cls)]
    for key in parameters:
        if key not in known:
            raise UsageError(
                f"step cache {name!r} has no parameter {key!r}{did_you_mean(key, known)}; "
                f"it has {', '.join(known)}"
            )
    _typed(parameters)
    return cls


def _check(transformer: Any) -> None:
    if not hasattr(transformer, "enable_cache"):
        raise UsageError(f"{_class_name(transformer)} has no step caches in diffusers")
    if transformer.is_cache_enabled:
        raise UsageError(
            f"a step cache is already on in {_class_name(transformer)}; call its disable_cache()"
        )


def _check_fits(pipe: Any, transformer: Any, name: str) -> None:
    kind, instead = KINDS[name], "use 'first_block' or 'taylorseer'"
    if kind.asks_timestep and not hasattr(type(pipe), "current_timestep"):
        raise UsageError(
            f"step cache {name!r} asks a pipeline for the timestep, which {_class_name(pipe)} does "
            f"not tell; give the pipeline itself, or {instead}"
        )
    classes = {cls.__name__ for cls in type(_unwrapped(transformer)).__mro__}
    if kind.batched_guidance and classes.isdisjoint(BATCHED_GUIDANCE):
        raise UsageError(
            f"step cache {name!r} needs both branches of the guidance in one batch, which not all "
            f"pipelines of {_class_name(transformer)} make; {instead}"
        )


def _class_name(transformer: Any) -> str:
    return type(_unwrapped(transformer)).__name__


def _unwrapped(transformer: Any) -> Any:
    """Return the model inside ``torch.compile(model)``."""
    return getattr(transformer, "_orig_mod", transformer)


def _values(pipe: Any, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    kind = KINDS[name]
    values = dict(kind.defaults)
    if kind.asks_timestep:
        values["current_timestep_callback"] = lambda: pipe.current_timestep
    return _typed({**values, **parameters})


def _typed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with a dtype for its name, which is all that a file can hold."""
    import torch

    values, key = dict(parameters), "taylor_factors_dtype"
    if key in values:
        dtype = getattr(torch, str(values[key]).removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype):
            raise UsageError(f"{key}={values[key]!r} is no dtype; use float32, bfloat16 or float16")
        values[key] = dtype
    return values
