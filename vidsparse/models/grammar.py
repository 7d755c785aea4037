"""The sentences that the bundled model understands: words, captions and their meaning."""

import math
import re
import zlib
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "ring")
# Hue in degrees; neighbours are far enough apart to be told from a decoded video.
COLOURS = {
    "red": 0.0,
    "orange": 29.0,
    "yellow": 56.0,
    "green": 125.0,
    "cyan": 184.0,
    "blue": 227.0,
    "purple": 284.0,
}
SIZES = {"small": 0.09, "": 0.13, "large": 0.18}
SPEEDS = {"slowly": 0.26, "": 0.42, "quickly": 0.60}
VERBS = ("moves", "bounces")
_DIAGONAL = math.sqrt(0.5)
# Image coordinates: x to the right, y downwards.
DIRECTIONS = {
    "right": (1.0, 0.0),
    "left": (-1.0, 0.0),
    "down": (0.0, 1.0),
    "up": (0.0, -1.0),
    "down and right": (_DIAGONAL, _DIAGONAL),
    "down and left": (-_DIAGONAL, _DIAGONAL),
    "up and right": (_DIAGONAL, -_DIAGONAL),
    "up and left": (-_DIAGONAL, -_DIAGONAL),
}
PATTERNS = ("background", "gradient", "stripes", "checks", "clouds")
# Muted tones (hue in degrees, saturation, value), never as saturated as an object.
BACKGROUND_COLOURS = {
    "grey": (0.0, 0.0, 0.50),
    "green": (120.0, 0.32, 0.48),
    "blue": (222.0, 0.34, 0.52),
    "brown": (28.0, 0.38, 0.46),
    "purple": (285.0, 0.28, 0.50),
}
CAMERAS = ("", "zooms in", "zooms out", "pans left", "pans right")
_GLUE = ("a", "and", "over", "plain", "drifting", "while", "the", "camera")

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        word
        for phrase in (
            *_GLUE,
            *SIZES,
            *COLOURS,
            *SHAPES,
            *VERBS,
            *DIRECTIONS,
            *SPEEDS,
            *PATTERNS,
            *BACKGROUND_COLOURS,
            *CAMERAS,
        )
        for word in phrase.split()
    )
)

_OBJECT = re.compile(
    rf"\b(?:(?P<size>{'|'.join(s for s in SIZES if s)}) )?(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<shape>{'|'.join(SHAPES)}) (?:(?P<speed>{'|'.join(s for s in SPEEDS if s)}) )?"
    rf"(?P<verb>{'|'.join(VERBS)}) "
    # Longest first, or "up" would swallow the start of "up and left".
    rf"(?P<direction>{'|'.join(sorted(DIRECTIONS, key=len, reverse=True))})\b"
)
_BACKGROUND = re.compile(
    rf"\bover (?:a )?(?P<drifting>drifting )?(?:plain )?(?P<colour>{'|'.join(BACKGROUND_COLOURS)}) "
    rf"(?P<pattern>{'|'.join(PATTERNS)})\b"
)
_CAMERA = re.compile(rf"\bthe camera (?P<camera>{'|'.join(c for c in CAMERAS if c)})\b")


@dataclass(frozen=True)
class ObjectCaption:
    """One object of a caption; empty ``size`` and ``speed`` mean medium."""

    shape: str
    colour: str
    direction: str
    size: str = ""
    speed: str = ""
    verb: str = "moves"

    def __str__(self) -> str:
        words = ("a", self.size, self.colour, self.shape, self.speed, self.verb, self.direction)
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Caption:
    """The meaning of one sentence of the grammar; ``str()`` is the sentence."""

    objects: tuple[ObjectCaption, ...]
    background_colour: str = "grey"
    pattern: str = "background"
    drifting: bool = False
    camera: str = ""

    def __str__(self) -> str:
        article = {"background": "a plain ", "gradient": "a "}.get(self.pattern, "")
        drift = "drifting " if self.drifting else ""
        camera = f" while the camera {self.camera}" if self.camera else ""
        objects = " and ".join(str(one) for one in self.objects)
        return f"{objects} over {article}{drift}{self.background_colour} {self.pattern}{camera}"


def normalise(text: str) -> str:
    """Lower the case and drop every word that the model doesn't know, as its tokenizer does."""
    return " ".join(known_words(text))


def known_words(text: str) -> list[str]:
    """List the words of ``text`` that the model knows, in order; empty when it knows none."""
    known = set(WORDS)
    return [word for word in re.findall(r"\w+", text.lower()) if word in known]


def parse_caption(text: str) -> Caption:
    """Read a sentence of the grammar; words outside it are ignored.

    Args:
        text: a prompt such as "a small red circle moves right over drifting green stripes".

    Returns:
        The caption; a missing background or camera takes the defaults of `Caption`.

    Raises:
        ValueError: ``text`` names no object with colour, shape and direction.
    """
    clean = normalise(text)
    objects = tuple(
        ObjectCaption(**{key: value or "" for key, value in match.groupdict().items()})
        for match in _OBJECT.finditer(clean)
    )
    if not objects:
        raise ValueError(
            f"no object found in caption {text!r}; say it like 'a red circle moves right'"
        )
    camera = _CAMERA.search(clean)
    return _with_background(objects, clean, camera["camera"] if camera else "")


def _with_background(objects: tuple[ObjectCaption, ...], clean: str, camera: str) -> Caption:
    ground = _BACKGROUND.search(clean)
    if ground is None:
        return Caption(objects, camera=camera)
    return Caption(
        objects, ground["colour"], ground["pattern"], ground["drifting"] is not None, camera
    )


def held_out(shape: str, colour: str, direction: str) -> bool:
    """Say whether training never shows this combination: about one in eight is kept for tests."""
    return zlib.crc32(f"{shape} {colour} {direction}".encode()) % 8 == 0
