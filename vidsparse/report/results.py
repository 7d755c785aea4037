"""Results of a comparison as a folder: a JSON document and the clips it tells of."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vidsparse.clips import ClipFacts, FolderClips, Scene
from vidsparse.errors import UsageError
from vidsparse.report.tables import write_json
from vidsparse.scores import Comparison

FORMAT = 2
_CLIPS = "clips"
_DOCUMENT = "results.json"
_MAPS = ".maps.json"


def document(comparison: Comparison, meta: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON document: meta, scenes, the dense reference and one row per method."""
    return {
        "format": FORMAT,
        "meta": meta,
        "scenes": [asdict(scene) for scene in comparison.scenes],
        "dense": comparison.dense_row(),
        "rows": comparison.rows(),
    }


def clips_in(folder: Path, fps: float) -> FolderClips:
    """Return where a results folder keeps its clips."""
    return FolderClips(folder / _CLIPS, fps)


def maps_file(folder: Path, key: str, scene: Scene) -> Path:
    """Return where density and recall by layer, head and step of a clip lie."""
    return FolderClips(folder / _CLIPS).video_file(key, scene).with_suffix(_MAPS)


def write_results(folder: Path, found: dict[str, Any]) -> Path:
    """Write ``results.json``, after everything it tells of."""
    write_json(folder / _DOCUMENT, found)
    return folder / _DOCUMENT


_OF_META = (
    "fps", "command", "model", "sampling", "versions", "date", "device", "driver", "dtype",
    "python", "commit",
)  # fmt: skip
_OF_ROWS = (
    "key", "method", "role", "verdict", "intervals", "speedup", "density", "overall_density",
    "identical", "psnr", "psnr_pooled", "ssim", "lpips", "flicker", "content",
)  # fmt: skip


def _lacking(found: dict[str, Any]) -> list[str]:
    """Name what a results file must have and this one has not."""
    rows: Any = found.get("rows")
    parts = {
        "scenes": _missing(found.get("scenes"), ("prompt", "seed")),
        "dense": _missing([found.get("dense")], ("key", "denoise_seconds", "content")),
        "rows": _missing(rows, _OF_ROWS) or _missing_in_rows(rows),
        "meta": _missing([found.get("meta")], _OF_META),
    }
    lacking = {name: ", ".join(keys) for name, keys in parts.items() if keys}
    return [f"{name}: {keys}" if keys else name for name, keys in lacking.items()]


def _missing(entries: Any, keys: tuple[str, ...]) -> list[str]:
    """Name keys that not all entries have; an empty name when there are no entries."""
    if not isinstance(entries, list) or not entries:
        return [""]
    if not all(isinstance(one, dict) for one in entries):
        return [""]
    return [key for key in keys if not all(key in one for one in entries)]


def _missing_in_rows(rows: list[dict[str, Any]]) -> list[str]:
    """Name what only some rows have, or has a part of its own."""
    parts = {
        "reason": all("reason" in row for row in rows if row["role"] == "method"),
        "intervals.speedup": all("speedup" in row["intervals"] for row in rows),
    }
    return [name for name, whole in parts.items() if not whole]


@dataclass(frozen=True)
class Results:
    """A results folder.

    Attributes:
        folder: made by ``vidsparse compare --out``.
        document: what its ``results.json`` says.
    """

    folder: Path
    document: dict[str, Any]

    @staticmethod
    def load(folder: Path) -> "Results":
        """Read a results folder.

        Raises:
            UsageError: there are no results, they are damaged or of another version.
        """
        file = folder / _DOCUMENT
        if not file.is_file():
            raise UsageError(
                f"{folder} holds no {_DOCUMENT}; make it with: vidsparse compare --out"
            )
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UsageError(f"{file} is damaged; run the comparison again") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UsageError(f"{file} is no results file of format {FORMAT}; run compare again")
        if lacking := _lacking(found):
            raise UsageError(f"{file} lacks {'; '.join(lacking)}; run compare again")
        return Results(folder, found)

    @cached_property
    def scenes(self) -> tuple[Scene, ...]:
        """Prompts and seeds."""
        return tuple(Scene(**scene) for scene in self.document["scenes"])

    @property
    def fps(self) -> float:
        """Frames per second of the clips."""
        return float(self.document["meta"]["fps"])

    @property
    def keys(self) -> list[str]:
        """Names of the contenders among the clips, dense first, then as the rows are."""
        return [self.document["dense"]["key"], *(row["key"] for row in self.document["rows"])]

    def frames(self, key: str, scene: Scene) -> np.ndarray:
        """Return the (F, H, W, 3) uint8 frames of a clip."""
        return clips_in(self.folder, self.fps).frames(key, scene)

    def facts(self, key: str, scene: Scene) -> ClipFacts:
        """Return what is known of a clip.

        Raises:
            UsageError: the clip is gone.
        """
        found = clips_in(self.folder, self.fps).find(key, scene)
        if found is None:
            raise UsageError(
                f"{self.folder} lacks clip {key}, seed {scene.seed}; run its command again: "
                f"{self.document['meta']['command']}"
            )
        return found

    def maps(self, key: str) -> dict[str, Any] | None:
        """Return the first clip's density and recall by layer, head and step; None without."""
        file = maps_file(self.folder, key, self.scenes[0])
        if not file.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{file} is damaged; delete it and compare with --maps") from error
        return found

    def first_clips(self) -> list[tuple[str, np.ndarray]]:
        """Return label and frames of the first scene, dense first."""
        labels = ["dense", *(row["method"] for row in self.document["rows"])]
        pairs = zip(labels, self.keys, strict=True)
        return [(label, self.frames(key, self.scenes[0])) for label, key in pairs]
