"""Settings of one attachment, as data that can be saved, shared and loaded."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vidsparse.errors import UsageError

PRESETS = Path(__file__).parent / "presets"


class SparseConfig(BaseModel):
    """A method, its parameters, and what stays dense; the content of a preset file.

    Ranges are checked by the method and the schedule when the config is used.

    Attributes:
        method: one of ``vidsparse methods``.
        parameters: fields of the method, such as ``density``; those not given keep its defaults.
        dense_steps: share of the steps in [0, 1] as a float, or a count as an int.
        dense_layers: share of the layers in [0, 1] as a float, or a count as an int.
        dense_above_sigma: steps with a noise level above this are dense too, in [0, 1].
        impl: kernel implementation.
        note: where the values come from; for people.

    Raises:
        UsageError: a key is unknown or a value has the wrong type; one line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    method: str = "svg"
    parameters: dict[str, Any] = Field(default_factory=dict)
    dense_steps: float | int = 0.2
    dense_layers: float | int = 0
    dense_above_sigma: float | None = None
    impl: str = "auto"
    note: str = ""

    # Pydantic's own error has several lines and is no UsageError.
    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(_one_line(error, type(self))) from None

    @classmethod
    def load(cls, path_or_name: str | Path) -> "SparseConfig":
        """Read a preset.

        Args:
            path_or_name: a JSON file, or the name of a preset in ``preset_names()``.

        Raises:
            UsageError: there is no such file or preset, or it does not hold a config.
        """
        path = _find(path_or_name)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UsageError(f"cannot read preset {path}: {error}") from None
        if not isinstance(values, dict):
            raise UsageError(
                f"preset {path} must hold one JSON object, not {type(values).__name__}"
            )
        try:
            return cls(**values)
        except UsageError as error:
            raise UsageError(f"preset {path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write a preset file that ``load`` reads; an existing file is replaced.

        Raises:
            UsageError: the file cannot be written, or a parameter is no JSON value.
        """
        try:
            text = json.dumps(self.model_dump(), indent=2)
            Path(path).write_text(text + "\n", encoding="utf-8")
        except (OSError, TypeError) as error:
            raise UsageError(f"cannot write preset {path}: {error}") from None


def preset_names() -> list[str]:
    """Return the names of the presets that come with vidsparse, in alphabetical order."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    named = PRESETS / f"{path_or_name}.json"
    if path.name == str(path_or_name) and named.is_file():
        return named
    known = ", ".join(preset_names()) or "none"
    raise UsageError(
        f"there is no preset file or preset {str(path_or_name)!r}; give a JSON file's path or one "
        f"of the presets: {known}"
    )


def _one_line(error: ValidationError, cls: type[BaseModel]) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"][:1]))
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed are {', '.join(cls.model_fields)}"
    return f"{key}={first['input']!r}: {first['msg']}"
