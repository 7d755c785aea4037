"""Tell models apart by class and configuration, whatever they are called."""

from collections.abc import Mapping
from typing import Any

from vidsparse.errors import UsageError
from vidsparse.preset_parts import ModelId

_NAMES = ("transformer", "transformer_2")


def model_of(pipe_or_transformer: Any) -> ModelId:
    """Describe a pipeline or a bare transformer.

    Args:
        pipe_or_transformer: a diffusers pipeline, or its transformer, compiled or not.
    """
    if hasattr(pipe_or_transformer, "config") and not hasattr(pipe_or_transformer, "transformer"):
        return ModelId(transformers={_NAMES[0]: _described(pipe_or_transformer)})
    found = {name: getattr(pipe_or_transformer, name, None) for name in _NAMES}
    described = {name: _described(each) for name, each in found.items() if each is not None}
    return ModelId(pipeline=type(pipe_or_transformer).__name__, transformers=described)


def differences(wanted: ModelId, found: ModelId) -> list[str]:
    """Say how a model differs from the one a preset is for; nothing for what was left open.

    Args:
        wanted: the preset's.
        found: the model at hand.
    """
    lines: list[str] = []
    for name, values in wanted.transformers.items():
        here = found.transformers.get(name)
        # A bare transformer is one expert of a pipeline that may have two.
        if here is None and found.pipeline is None:
            continue
        if here is None:
            lines.append(f"it has {name} and this model has none")
            continue
        lines += _changed(name, values, here)
    return lines


def check_model(wanted: ModelId, pipe_or_transformer: Any) -> None:
    """Refuse a preset of another model.

    Raises:
        UsageError: the model differs; the message says how.
    """
    lines = differences(wanted, model_of(pipe_or_transformer))
    if lines:
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise UsageError(
            f"the preset is for another model: {'; '.join(lines[:3])}{more}; choose the preset of "
            "this model, or force it (force=True, --force)"
        )


def _described(transformer: Any) -> dict[str, Any]:
    inner = getattr(transformer, "_orig_mod", transformer)
    public = {key: _plain(value) for key, value in dict(inner.config).items() if key[:1] != "_"}
    known = {key: value for key, value in public.items() if value is not None}
    return {"class": type(inner).__name__, **known}


def _changed(name: str, wanted: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}'s {key} is {value} in the preset and {here.get(key, 'unset')} here"
        for key, value in wanted.items()
        if _plain(value) != here.get(key)
    ]


def _plain(value: Any) -> Any:
    """Return lists for tuples, as files have them; what files cannot hold becomes text."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
