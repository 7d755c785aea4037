"""Diffusers' step caches beside sparse attention: which there are, and switching them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vidsparse.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class CacheKind:
    """One of diffusers' caches.

    Attributes:
        config: name of its configuration class in diffusers.
        ladder: settings ``tune`` tries, from the least to the most work skipped.
        fixed: values that are always set.
        batched_guidance: works only where both branches of the guidance are one batch, since it
            keeps one state for all calls of a module.
        asks_timestep: its configuration wants a callback for the current timestep.
    """

    config: str
    ladder: tuple[Mapping[str, Any], ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
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
        fixed={"use_lite_mode": True, "taylor_factors_dtype": None},
    ),
    "pab": CacheKind(
        "PyramidAttentionBroadcastConfig",
        _ladder("spatial_attention_block_skip_range", (2, 3, 4)),
        batched_guidance=True,
        asks_timestep=True,
    ),
}
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
    enabled: list[Any] = []

    def disable() -> None:
        while enabled:
            enabled.pop().disable_cache()

    try:
        for transformer in transformers:
            transformer.enable_cache(cls(**_values(pipe, name, parameters)))
            enabled.append(transformer)
    except ValueError as error:
        disable()
        raise UsageError(
            f"step cache {name!r} does not work on {type(transformer).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return disable


def _transformers(pipe: Any) -> list[Any]:
    if hasattr(pipe, "enable_cache"):
        return [pipe]
    found = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    return [each for each in found if each is not None]


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
    return cls


def _check(transformer: Any) -> None:
    if not hasattr(transformer, "enable_cache"):
        raise UsageError(f"{type(transformer).__name__} has no step caches in diffusers")
    if transformer.is_cache_enabled:
        raise UsageError(
            f"a step cache is already on in {type(transformer).__name__}; call its disable_cache()"
        )


def _values(pipe: Any, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    kind = KINDS[name]
    values = {**kind.fixed, **parameters}
    if "taylor_factors_dtype" in values:
        # Factors are differences of nearly equal tensors: bfloat16, the default, loses them.
        values["taylor_factors_dtype"] = torch.float32
    if kind.asks_timestep:
        values["current_timestep_callback"] = lambda: pipe.current_timestep
    return values
