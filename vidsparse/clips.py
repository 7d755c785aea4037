"""Finished clips of a comparison: their frames and what is known of them, in memory or a folder.

A clip in a folder is a lossless video and, written after it, a JSON file. Only with both is it
finished: an interrupt leaves finished clips whole, and a half-written one is made again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vidsparse.errors import UsageError
from vidsparse.files import json_text, write_text
from vidsparse.quality import Quality
from vidsparse.video import read_video_file, write_frames


@dataclass(frozen=True)
class Scene:
    """A clip to generate: the prompt and the seed of its noise."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class SiteDensity:
    """Kept share of query-key pairs at one layer and step, the mean over branches and heads."""

    transformer: str
    step: int
    layer: int
    density: float


@dataclass(frozen=True)
class ClipFacts:
    """What is known of one clip besides its frames.

    Attributes:
        denoise_seconds: from the first transformer call's start to the last one's end.
        total_seconds: the whole pipeline call.
        quality: against the dense clip of the same scene; None for the dense clip itself.
        content: whether shape, colour and direction are the caption's; None without a judge.
        calls: the method's call summary; None for a dense clip.
        sites: density by layer and step; empty for a dense clip.
        digest: of its frames; None in files of earlier versions, as the next two.
        against: digest of the dense clip that ``quality`` is against.
        run: name of the run that made it; times of one run compare.
    """

    denoise_seconds: float
    total_seconds: float
    quality: Quality | None = None
    content: dict[str, bool] | None = None
    calls: dict[str, Any] | None = None
    sites: tuple[SiteDensity, ...] = ()
    digest: str | None = None
    against: str | None = None
    run: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        values = asdict(self)
        values["quality"] = None if self.quality is None else self.quality.as_dict()
        return values

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "ClipFacts":
        """Read what ``as_dict`` returned."""
        quality = values["quality"]
        sites = tuple(SiteDensity(**site) for site in values["sites"])
        known = None if quality is None else Quality.from_dict(quality)
        return ClipFacts(**{**values, "quality": known, "sites": sites})


class Clips(Protocol):
    """Where finished clips are kept; a contender is named by a key from ``contender_key``."""

    def find(self, contender: str, scene: Scene) -> ClipFacts | None:
        """Return what is known of a clip; None when it is not finished."""

    def frames(self, contender: str, scene: Scene) -> np.ndarray:
        """Return the (F, H, W, 3) uint8 frames of a finished clip."""

    def keep(self, contender: str, scene: Scene, frames: np.ndarray, facts: ClipFacts) -> None:
        """Keep a finished clip."""


class MemoryClips:
    """Clips that last as long as this object."""

    def __init__(self) -> None:
        self._clips: dict[tuple[str, Scene], tuple[np.ndarray, ClipFacts]] = {}

    def find(self, contender: str, scene: Scene) -> ClipFacts | None:
        """Return what is known of a clip; None when there is none."""
        found = self._clips.get((contender, scene))
        return None if found is None else found[1]

    def frames(self, contender: str, scene: Scene) -> np.ndarray:
        """Return a clip's (F, H, W, 3) uint8 frames."""
        return self._clips[contender, scene][0]

    def keep(self, contender: str, scene: Scene, frames: np.ndarray, facts: ClipFacts) -> None:
        """Keep a clip."""
        self._clips[contender, scene] = frames, facts


@dataclass(frozen=True)
class FolderClips:
    """Clips as files, ``<contender>/<scene>.mkv`` and ``.json``.

    Attributes:
        folder: holds one folder per contender.
        fps: frames per second of the videos.
    """

    folder: Path
    fps: float = 16

    def find(self, contender: str, scene: Scene) -> ClipFacts | None:
        """Return what is known of a finished clip; None when it is not.

        Raises:
            UsageError: its JSON is damaged.
        """
        video, facts = self.video_file(contender, scene), self._facts_file(contender, scene)
        if not video.is_file() or not facts.is_file():
            return None
        try:
            return ClipFacts.from_dict(json.loads(facts.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{facts} is damaged; delete it to make the clip again") from error

    def frames(self, contender: str, scene: Scene) -> np.ndarray:
        """Read the (F, H, W, 3) uint8 frames of a finished clip."""
        return read_video_file(self.video_file(contender, scene)).frames

    def keep(self, contender: str, scene: Scene, frames: np.ndarray, facts: ClipFacts) -> None:
        """Write the video, then its JSON, each whole or not at all."""
        self._facts_file(contender, scene).unlink(missing_ok=True)
        write_frames(self.video_file(contender, scene), frames, fps=self.fps)
        text = json_text(facts.as_dict())
        write_text(self._facts_file(contender, scene), text)

    def video_file(self, contender: str, scene: Scene) -> Path:
        """Return where a clip's frames lie."""
        name = f"{_digest(scene.prompt)}-seed{scene.seed}.mkv"
        return self.folder / contender / name

    def _facts_file(self, contender: str, scene: Scene) -> Path:
        return self.video_file(contender, scene).with_suffix(".json")


@dataclass
class Forgetful:
    """Clips that does not find what an earlier run left, and so has it made again.

    Attributes:
        inner: where clips are kept.
    """

    inner: Clips
    _made: set[tuple[str, Scene]] = field(default_factory=set)

    def find(self, contender: str, scene: Scene) -> ClipFacts | None:
        """Return what is known of a clip of this run; None for earlier ones."""
        return self.inner.find(contender, scene) if (contender, scene) in self._made else None

    def frames(self, contender: str, scene: Scene) -> np.ndarray:
        """Return the frames of a clip of this run."""
        return self.inner.frames(contender, scene)

    def keep(self, contender: str, scene: Scene, frames: np.ndarray, facts: ClipFacts) -> None:
        """Keep a clip in place of an earlier one."""
        self.inner.keep(contender, scene, frames, facts)
        self._made.add((contender, scene))


def contender_key(label: str, settings: Mapping[str, Any]) -> str:
    """Return a folder's name for everything that decides what a contender generates.

    Args:
        label: for people.
        settings: JSON values: model, dtype, sampling, method, version.
    """
    plain = "".join(char if char.isalnum() or char in "-_.=" else "-" for char in label)
    return f"{plain[:40].strip('-.')}-{_digest(json.dumps(settings, sort_keys=True, default=str))}"


def frames_digest(frames: np.ndarray) -> str:
    """Return a digest of (F, H, W, 3) uint8 frames."""
    return sha256(np.ascontiguousarray(frames).data).hexdigest()[:16]


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:10]
