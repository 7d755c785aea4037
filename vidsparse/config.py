"""Settings of one attachment, as data that can be saved, shared and loaded: presets."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from vidsparse.errors import UsageError, did_you_mean
from vidsparse.preset_files import SUFFIXES, read_values, write_values
from vidsparse.preset_parts import Band, Measured, ModelId, Section, Status, StepCache

if TYPE_CHECKING:
    from vidsparse.methods.base import SparseMethod
    from vidsparse.schedule import DenseSchedule

PRESETS = Path(__file__).parent / "presets"


class SparseConfig(Section):
    """A method, its parameters, and what stays dense; the content of a preset file.

    Ranges are checked by ``build`` and when the config is used.

    Attributes:
        version: of the schema.
        method: one of ``vidsparse methods``.
        dense_steps: share of the steps in [0, 1] as a float, or a count as an int.
        dense_layers: share of the layers in [0, 1] as a float, or a count as an int.
        dense_above_sigma: steps with a noise level above this are dense too, in [0, 1].
        impl: kernel implementation.
        precision: "native", "8bit-sparse" or "8bit"; see ``vidsparse.precision``.
        status: whether the values were measured, and by whom.
        note: where the values come from; for people.
        parameters: fields of the method, such as ``density``; those not given keep its defaults.
        bands: densities by noise level and layer, instead of the method's ``density``; they hold
            for any number of steps.
        cache: a step cache of diffusers that is on as well.
        model: what the preset was made for; others are refused unless forced.
        measured: evidence.

    Raises:
        UsageError: a key is unknown or a value has the wrong type; one line.
    """

    version: Literal[1] = 1
    method: str = "svg"
    dense_steps: float | int = 0.2
    dense_layers: float | int = 0
    dense_above_sigma: float | None = None
    impl: str = "auto"
    precision: str = "native"
    status: Status = "own"
    note: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    bands: list[Band] = Field(default_factory=list)
    cache: StepCache | None = None
    model: ModelId | None = None
    measured: Measured | None = None

    @field_validator("parameters")
    @classmethod
    def _hashable(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        # Files know lists only; methods are frozen and want tuples.
        return {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}

    @classmethod
    def load(cls, path_or_name: str | Path) -> "SparseConfig":
        """Read a preset.

        Args:
            path_or_name: a TOML or JSON file, or the name of a preset in ``preset_names()``.

        Raises:
            UsageError: there is no such file or preset, or it does not hold a config.
        """
        path = _find(path_or_name)
        values = read_values(path)
        try:
            return cls(**values)
        except UsageError as error:
            raise UsageError(f"preset {path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write a preset file that ``load`` reads; an existing file is replaced.

        Args:
            path: ends in .toml or .json.

        Raises:
            UsageError: the file cannot be written, or a parameter has no form in it.
        """
        write_values(Path(path), self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return nested plain values without what is empty or unset."""
        values = self.model_dump(exclude_none=True)
        # Unset parameters are dropped above, but a None that was given means something.
        values["parameters"] = dict(self.parameters)
        if self.measured is not None:
            values["measured"] = _filled(values["measured"])
        return _filled(values)

    def build(self) -> "tuple[SparseMethod, DenseSchedule]":
        """Make the method and the schedule, and check the other settings.

        Raises:
            UsageError: a parameter, the impl or the precision is unknown, a parameter is out of
                range, bands are not in order, or the method ignores densities and bands were given.
        """
        from vidsparse.choices import check_impl, check_precision
        from vidsparse.methods.base import build_method
        from vidsparse.schedule import DenseSchedule

        check_impl(self.impl)
        check_precision(self.precision)
        method = build_method(self.method, self.parameters)
        schedule = DenseSchedule(self.dense_steps, self.dense_layers, self.dense_above_sigma)
        return self.banded(method), schedule

    def banded(self, method: "SparseMethod") -> "SparseMethod":
        """Return a method with this config's bands, or itself where there are none."""
        from vidsparse.methods.banded import Banded

        return Banded.of(method, self.bands) if self.bands else method


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in ({}, [], "")}


def preset_names() -> list[str]:
    """Return the names of the presets that come with vidsparse, in alphabetical order."""
    return sorted(path.stem for path in PRESETS.iterdir() if path.suffix in SUFFIXES)


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    if path.name == str(path_or_name):
        for suffix in SUFFIXES:
            if (named := PRESETS / f"{path_or_name}{suffix}").is_file():
                return named
    known = preset_names()
    raise UsageError(
        f"there is no preset file or preset {str(path_or_name)!r}"
        f"{did_you_mean(str(path_or_name), known)}; give a file's path or one of the presets: "
        f"{', '.join(known) or 'none'}"
    )
