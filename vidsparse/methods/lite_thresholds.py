"""LiteAttention's thresholds: what each criterion's numbers mean, and tables of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vidsparse.errors import UsageError
from vidsparse.plan import CallSite

Criterion = Literal["previous_mass", "running_mass", "running_max"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
# Thresholds under which no tile is ever skipped.
KEEP_ALL: dict[Criterion, float] = {
    "running_mass": 0.0,
    "previous_mass": 0.0,
    "running_max": -1000.0,
}
_KEYS = ("criterion", "blocks", "layers", "target_error")


def check_criterion(criterion: str) -> None:
    """Refuse a criterion that does not exist.

    Raises:
        UsageError: it does not.
    """
    if criterion not in CRITERIA:
        raise UsageError(f"criterion={criterion!r} is unknown; use one of {', '.join(CRITERIA)}")


def check_threshold(value: Any, criterion: Criterion, *, where: str = "threshold") -> None:
    """Refuse a threshold of the wrong sign, unit or type.

    Args:
        value: what was given.
        criterion: what it is for.
        where: its name, for the message.

    Raises:
        UsageError: it is out of range; the message says what the criterion takes.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise UsageError(f"{where}={value!r} must be a number")
    if criterion == "running_max":
        if not -math.inf < value < 0:
            raise UsageError(
                f"{where}={value} must be below 0 for criterion 'running_max': it is the log2 of a "
                "weight over the row's largest, -10 skips what is a 1024th of it"
            )
    elif not 0 <= value <= 1:
        raise UsageError(
            f"{where}={value} must lie in [0, 1] for criterion {criterion!r}: tiles with less than "
            "this multiple of the even share of attention are skipped; negative numbers are log2 "
            "gaps, for criterion 'running_max'"
        )


@dataclass(frozen=True)
class ThresholdTable:
    """Thresholds by layer and by segment of the steps, and what they were found for.

    Segments are equal parts of the denoising steps.

    Attributes:
        criterion: what the numbers mean.
        blocks: (query, key) tokens of the tiles; other tiles hold other shares.
        layers: by transformer ("transformer", "transformer_2"), one row per layer with one
            threshold per segment.
        target_error: relative L1 error of the attention output that was aimed at; None: unknown.

    Raises:
        UsageError: a value is out of range, or rows are missing or uneven.
    """

    criterion: Criterion
    blocks: tuple[int, int]
    layers: Mapping[str, Sequence[Sequence[float]]]
    target_error: float | None = None

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        if len(self.blocks) != 2 or min(self.blocks) < 1:
            raise UsageError(f"thresholds: blocks={self.blocks} must be two sizes of at least 1")
        if not self.layers or not all(self.layers.values()):
            raise UsageError("thresholds: layers must hold a row of thresholds for every layer")
        for name, rows in self.layers.items():
            for layer, row in enumerate(rows):
                if not row or len(row) != len(rows[0]):
                    raise UsageError(
                        f"thresholds: {name} layer {layer} has {len(row)} segments and layer 0 "
                        f"{len(rows[0])}; give every layer the same number, at least 1"
                    )
                for value in row:
                    check_threshold(value, self.criterion, where=f"threshold of {name} {layer}")

    @staticmethod
    def from_values(values: Any) -> "ThresholdTable":
        """Read a table from plain values, as presets hold them.

        Raises:
            UsageError: a key is unknown or missing, or a value is out of range.
        """
        if isinstance(values, ThresholdTable):
            return values
        if not isinstance(values, Mapping):
            raise UsageError(
                f"thresholds={values!r} must be a table with {', '.join(_KEYS[:3])}; "
                "vidsparse calibrate writes one, and a single number goes to threshold="
            )
        unknown = [key for key in values if key not in _KEYS]
        missing = [key for key in _KEYS[:3] if key not in values]
        if unknown or missing:
            wrong = f"unknown {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
            raise UsageError(f"thresholds: {wrong}; a table has {', '.join(_KEYS)}")
        layers = {
            str(name): tuple(tuple(row) for row in rows) for name, rows in values["layers"].items()
        }
        error = values.get("target_error")
        return ThresholdTable(values["criterion"], tuple(values["blocks"]), layers, error)

    def as_values(self) -> dict[str, Any]:
        """Return plain values that ``from_values`` reads."""
        values: dict[str, Any] = {"criterion": self.criterion, "blocks": list(self.blocks)}
        if self.target_error is not None:
            values["target_error"] = self.target_error
        values["layers"] = {name: [list(r) for r in rows] for name, rows in self.layers.items()}
        return values

    def of(self, site: CallSite) -> float:
        """Return the threshold of a call.

        Raises:
            UsageError: the table is for another model, or the number of steps is unknown.
        """
        rows = self.layers.get(site.transformer)
        if rows is None or len(rows) != site.num_layers:
            have = ", ".join(
                f"{name} with {len(rows)} layers" for name, rows in self.layers.items()
            )
            raise UsageError(
                f"the thresholds are for another model: they hold {have}, and this is "
                f"{site.transformer} with {site.num_layers} layers; calibrate this model"
            )
        return rows[site.layer][segment_of(site, len(rows[0]))]

    def check_blocks(self, blocks: tuple[int, int]) -> None:
        """Refuse tiles of another size.

        Raises:
            UsageError: the tiles differ.
        """
        if blocks != self.blocks:
            raise UsageError(
                f"the thresholds are for tiles of {self.blocks[0]} x {self.blocks[1]} tokens and "
                f"the kernels take {blocks[0]} x {blocks[1]} here; calibrate on this device, or "
                f"give blocks={self.blocks}"
            )


def segment_of(site: CallSite, segments: int) -> int:
    """Return which of equal parts of the steps a call lies in, from 0.

    Raises:
        UsageError: the number of steps is unknown.
    """
    if site.num_steps is None:
        raise UsageError(
            "thresholds by step need the number of steps, which a bare transformer does not tell; "
            "give num_steps= to handle.generation()"
        )
    return min(segments - 1, site.step * segments // site.num_steps)
