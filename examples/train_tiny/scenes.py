"""Endless procedural clips with their captions; every number follows from a seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vidsparse.models import grammar
from vidsparse.models.grammar import Caption, ObjectCaption
from vidsparse.models.shapes import shape_distance

_SHAPES = grammar.SHAPES
_COLOURS = tuple(grammar.COLOURS)
_DIRECTIONS = tuple(grammar.DIRECTIONS)
_SIZES = tuple(grammar.SIZES)
_SPEEDS = tuple(grammar.SPEEDS)
_GROUNDS = tuple(grammar.BACKGROUND_COLOURS)
MAX_OBJECTS = 3
NOISE_CELLS = 12
ZOOM = 1.35
Window = tuple[slice, slice, slice]  # frames, rows, columns


@dataclass(frozen=True)
class Scenes:
    """A batch of clips before rendering; lengths are in units of the frame's shorter side."""

    shape: Tensor  # (B, 3) index into SHAPES, -1 for no object
    rgb: Tensor  # (B, 3, 3) object colours in [0, 1]
    radius: Tensor  # (B, 3)
    velocity: Tensor  # (B, 3, 2) per clip
    centre: Tensor  # (B, 3, 2) where the object is half-way, as a fraction of what is allowed
    bounces: Tensor  # (B, 3) bool
    pattern: Tensor  # (B,) index into PATTERNS
    ground: Tensor  # (B, 2, 3) the background's two colours
    wave: Tensor  # (B, 2) the pattern's wave vector in cycles
    drift: Tensor  # (B, 2) background shift per clip
    noise: Tensor  # (B, 1, NOISE_CELLS, NOISE_CELLS)
    zoom: Tensor  # (B,) log scale from first to last frame
    pan: Tensor  # (B,) horizontal shift of everything per clip

    def to(self, device: torch.device) -> "Scenes":
        """Move every tensor."""
        return Scenes(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def _pick(rng: torch.Generator, weights: Sequence[float], *shape: int) -> Tensor:
    table = torch.tensor(weights, dtype=torch.float32)
    count = math.prod(shape)
    return torch.multinomial(table, count, replacement=True, generator=rng).view(shape)


def _uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=rng) * (high - low) + low


def _direction_table() -> Tensor:
    """(shape, colour, direction, held out?) -> a direction on the wanted side of the split."""
    table = torch.zeros(len(_SHAPES), len(_COLOURS), len(_DIRECTIONS), 2, dtype=torch.long)
    for s, shape in enumerate(_SHAPES):
        for c, colour in enumerate(_COLOURS):
            unseen = [grammar.held_out(shape, colour, d) for d in _DIRECTIONS]
            for d in range(len(_DIRECTIONS)):
                for wanted in (0, 1):
                    # The next direction round the list that lies on the wanted side.
                    ring = [(d + k) % len(_DIRECTIONS) for k in range(len(_DIRECTIONS))]
                    fits = [k for k in ring if unseen[k] == bool(wanted)]
                    table[s, c, d, wanted] = fits[0] if fits else -1
    return table


_TABLE = _direction_table()


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """Convert (..., 3) hue in degrees, saturation and value in [0, 1] to RGB in [0, 1]."""
    hue, saturation, value = hsv.unbind(-1)
    offsets = torch.tensor([5.0, 3.0, 1.0])
    k = torch.remainder(offsets + (hue / 60.0).unsqueeze(-1), 6.0)
    fade = torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
    return value.unsqueeze(-1) * (1.0 - saturation.unsqueeze(-1) * fade)


@dataclass(frozen=True)
class _Choices:
    count: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    speed: Tensor
    direction: Tensor
    bounces: Tensor
    pattern: Tensor
    ground: Tensor
    drifting: Tensor
    camera: Tensor


def _choose(n: int, rng: torch.Generator, *, check: bool) -> _Choices:
    """Draw the words; ``check`` asks for one moving object of an unseen combination."""
    K = MAX_OBJECTS
    count = _pick(rng, [1.0, 0.0, 0.0] if check else [0.72, 0.20, 0.08], n) + 1
    shape = _pick(rng, [1.0] * len(_SHAPES), n, K)
    # Objects of one clip differ in colour, so that the caption tells them apart.
    colour = torch.rand(n, len(_COLOURS), generator=rng).argsort(dim=1)[:, :K]
    direction = _pick(rng, [1.5] * 4 + [1.0] * 4, n, K)
    direction = _TABLE[shape, colour, direction, int(check)]
    while bool((direction < 0).any()):
        # No direction of this shape and colour is held out: draw the shape again.
        shape = torch.where(direction < 0, _pick(rng, [1.0] * len(_SHAPES), n, K), shape)
        fresh = _TABLE[shape, colour, _pick(rng, [1.0] * len(_DIRECTIONS), n, K), int(check)]
        direction = torch.where(direction < 0, fresh, direction)
    pattern = _pick(rng, [1.2, 1.0, 1.0, 1.0, 1.0], n)
    moving = torch.rand(n, generator=rng) < 0.5
    camera = _pick(rng, [0.84, 0.04, 0.04, 0.04, 0.04], n)
    bounces = torch.rand(n, K, generator=rng) < 0.12
    return _Choices(
        count=count,
        shape=shape,
        colour=colour,
        size=_pick(rng, [1.0, 1.2, 1.0], n, K),
        speed=_pick(rng, [0.7, 1.2, 0.9], n, K),
        direction=direction,
        bounces=bounces & (not check),
        pattern=pattern,
        ground=_pick(rng, [1.0] * len(_GROUNDS), n),
        drifting=moving & (pattern >= 2),
        camera=camera * (not check),
    )


def _caption(c: _Choices, row: int) -> Caption:
    objects = tuple(
        ObjectCaption(
            shape=_SHAPES[int(c.shape[row, k])],
            colour=_COLOURS[int(c.colour[row, k])],
            direction=_DIRECTIONS[int(c.direction[row, k])],
            size=_SIZES[int(c.size[row, k])],
            speed=_SPEEDS[int(c.speed[row, k])],
            verb=grammar.VERBS[int(c.bounces[row, k])],
        )
        for k in range(int(c.count[row]))
    )
    return Caption(
        objects,
        _GROUNDS[int(c.ground[row])],
        grammar.PATTERNS[int(c.pattern[row])],
        bool(c.drifting[row]),
        grammar.CAMERAS[int(c.camera[row])],
    )


def _object_colours(c: _Choices, rng: torch.Generator) -> Tensor:
    n, K = c.colour.shape
    hue = torch.tensor(list(grammar.COLOURS.values()))[c.colour]
    hsv = torch.stack(
        [
            hue + _uniform(rng, -4.0, 4.0, n, K),
            _uniform(rng, 0.88, 1.0, n, K),
            _uniform(rng, 0.88, 1.0, n, K),
        ],
        dim=-1,
    )
    return hsv_to_rgb(hsv)


def _ground_colours(c: _Choices, rng: torch.Generator) -> Tensor:
    """Two tones of the background's colour, the second darker or lighter."""
    n = c.ground.shape[0]
    base = torch.tensor(list(grammar.BACKGROUND_COLOURS.values()))[c.ground]
    hsv = base.unsqueeze(1).repeat(1, 2, 1)
    hsv[..., 0] += _uniform(rng, -5.0, 5.0, n, 1)
    contrast = _uniform(rng, 0.10, 0.20, n) * (torch.randint(0, 2, (n,), generator=rng) * 2 - 1)
    hsv[:, 0, 2] += contrast
    hsv[:, 1, 2] -= contrast
    return hsv_to_rgb(hsv)


def _motion(c: _Choices, rng: torch.Generator) -> Tensor:
    n, K = c.colour.shape
    heading = torch.tensor(list(grammar.DIRECTIONS.values()))[c.direction]
    travel = torch.tensor(list(grammar.SPEEDS.values()))[c.speed]
    travel = travel * _uniform(rng, 0.92, 1.08, n, K)
    # A bouncing object has to reach a wall within the clip.
    travel = torch.where(c.bounces, travel * 2.6, travel)
    return heading * travel.unsqueeze(-1)


def sample_scenes(
    n: int, rng: torch.Generator, *, check: bool = False
) -> tuple[Scenes, list[Caption]]:
    """Draw ``n`` clips and their captions.

    Args:
        n: number of clips.
        rng: CPU generator; the same state gives the same clips on every device.
        check: draw one moving object of a combination that training never shows.

    Returns:
        The scenes on the CPU and one caption each.
    """
    c = _choose(n, rng, check=check)
    K = MAX_OBJECTS
    present = torch.arange(K).unsqueeze(0) < c.count.unsqueeze(1)
    angle = _uniform(rng, 0.0, math.tau, n)
    frequency = _uniform(rng, 2.5, 5.0, n)
    drift_angle = _uniform(rng, 0.0, math.tau, n)
    drift = c.drifting * _uniform(rng, 0.25, 0.5, n)
    # Stripes drift across themselves, else nothing would be seen to move.
    drift_angle = torch.where(c.pattern == 2, angle, drift_angle)
    camera_sign = torch.tensor([0.0, 1.0, -1.0, 0.0, 0.0])[c.camera]
    pan_sign = torch.tensor([0.0, 0.0, 0.0, 1.0, -1.0])[c.camera]
    radius = torch.tensor(list(grammar.SIZES.values()))[c.size] * _uniform(rng, 0.93, 1.07, n, K)
    scenes = Scenes(
        shape=torch.where(present, c.shape, -1),
        rgb=_object_colours(c, rng),
        radius=radius,
        velocity=_motion(c, rng),
        centre=_uniform(rng, -1.0, 1.0, n, K, 2),
        bounces=c.bounces,
        pattern=c.pattern,
        ground=_ground_colours(c, rng),
        wave=torch.stack([angle.cos(), angle.sin()], -1) * frequency.unsqueeze(-1),
        drift=torch.stack([drift_angle.cos(), drift_angle.sin()], -1) * drift.unsqueeze(-1),
        noise=torch.rand(n, 1, NOISE_CELLS, NOISE_CELLS, generator=rng),
        zoom=camera_sign * math.log(ZOOM),
        pan=pan_sign * 0.3,
    )
    return scenes, [_caption(c, row) for row in range(n)]


def object_paths(s: Scenes, frames: int, half: Tensor) -> Tensor:
    """Follow every object: (B, 3, F, 2) centres; ``half`` (2,) is half the frame's extent."""
    t = torch.linspace(-0.5, 0.5, frames, device=s.radius.device)
    room = (half - s.radius.unsqueeze(-1) * 1.12).clamp_min(0.01)  # (B, 3, 2)
    # Slow what could not stay inside the frame.
    fit = (2.0 * room / s.velocity.abs().clamp_min(1e-6)).amin(-1, keepdim=True).clamp_max(1.0)
    velocity = torch.where(s.bounces.unsqueeze(-1), s.velocity, s.velocity * fit)
    free = (room - velocity.abs() / 2).clamp_min(0.0)
    straight = (s.centre * free).unsqueeze(2) + velocity.unsqueeze(2) * t.view(1, 1, -1, 1)
    start = (s.centre * room * 0.6).unsqueeze(2)
    bent = start + s.velocity.unsqueeze(2) * (t + 0.5).view(1, 1, -1, 1)
    wall = room.unsqueeze(2)
    bent = wall - (torch.remainder(bent + wall, 4 * wall) - 2 * wall).abs()
    return torch.where(s.bounces[..., None, None], bent, straight)


def _background(s: Scenes, x: Tensor, y: Tensor) -> Tensor:
    """Mix the two tones; x, y (B, F, H, W) are scene coordinates. Returns (B, 3, F, H, W)."""
    a = math.tau * (x * s.wave[:, 0].view(-1, 1, 1, 1) + y * s.wave[:, 1].view(-1, 1, 1, 1))
    b = math.tau * (x * s.wave[:, 1].view(-1, 1, 1, 1) - y * s.wave[:, 0].view(-1, 1, 1, 1))
    stripes = torch.tanh(3.0 * a.sin())
    checks = torch.tanh(5.0 * (a * 0.7).sin() * (b * 0.7).sin())
    # A gradient runs once over the frame, along the wave's heading.
    gradient = (a / (2.0 * s.wave.norm(dim=1)).view(-1, 1, 1, 1)).clamp(-1.0, 1.0)
    B, frames, H, W = x.shape
    grid = torch.stack([x, y], -1).view(B, frames * H, W, 2)
    clouds = F.grid_sample(
        s.noise * 2 - 1, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    kinds = torch.stack(
        [torch.zeros_like(a), gradient, stripes, checks, clouds.view(B, frames, H, W) * 1.3]
    )
    mix = kinds.gather(0, s.pattern.view(1, -1, 1, 1, 1).expand(1, B, frames, H, W))[0]
    mix = (mix.clamp(-1, 1) * 0.5 + 0.5).unsqueeze(1)
    tones = s.ground.permute(1, 0, 2)[..., None, None, None]  # (2, B, 3, 1, 1, 1)
    return tones[0] * mix + tones[1] * (1.0 - mix)


def _paint(
    image: Tensor,
    x: Tensor,
    y: Tensor,
    pixels: Tensor,
    shape: Tensor,
    rgb: Tensor,
    radius: Tensor,
    path: Tensor,
) -> Tensor:
    """Put one object per clip over (B, 3, F, H, W); ``pixels`` per unit, path (B, F, 2)."""
    r = radius.view(-1, 1, 1, 1)
    dx = (x - path[:, :, 0, None, None]) / r
    dy = (y - path[:, :, 1, None, None]) / r
    distance = torch.full_like(dx, 1e3)
    for index, name in enumerate(_SHAPES):
        mine = shape.view(-1, 1, 1, 1) == index
        distance = torch.where(mine, shape_distance(dx, dy, name), distance)
    mask = (0.5 - distance * pixels * r).clamp(0.0, 1.0).unsqueeze(1)
    return image + (rgb[:, :, None, None, None] - image) * mask


_paint_compiled = torch.compile(_paint, dynamic=True)


@torch.no_grad()
def render(
    s: Scenes, *, frames: int, height: int, width: int, window: Window | None = None
) -> Tensor:
    """Draw the clips on the device of ``s``.

    Args:
        s: B scenes.
        frames: number of frames; every motion takes the whole clip.
        height: pixels.
        width: pixels.
        window: draw only these frames, rows and columns; None for all.

    Returns:
        (B, 3, frames, height, width), or the window's size, float32 in [-1, 1].
    """
    device, unit = s.radius.device, min(height, width)
    half = torch.tensor([width / unit / 2, height / unit / 2], device=device)
    when, rows, columns = window or (slice(None),) * 3
    t = torch.linspace(-0.5, 0.5, frames, device=device)[when].view(1, -1, 1, 1)
    px = ((torch.arange(width, device=device) + 0.5) / unit - half[0])[columns]
    py = ((torch.arange(height, device=device) + 0.5) / unit - half[1])[rows]
    scale = torch.exp(s.zoom.view(-1, 1, 1, 1) * t)  # (B, F, 1, 1)
    x = px.view(1, 1, 1, -1) / scale - s.pan.view(-1, 1, 1, 1) * t
    y = py.view(1, 1, -1, 1) / scale
    x, y = torch.broadcast_tensors(x, y)
    shift = s.drift.view(-1, 2, 1, 1, 1) * t.unsqueeze(1)
    image = _background(s, x - shift[:, 0], y - shift[:, 1])
    paths = object_paths(s, frames, half)[:, :, when]
    # Fused into one kernel on a GPU: the shapes' many small operations are memory-bound there.
    paint = _paint_compiled if device.type == "cuda" else _paint
    for k in range(MAX_OBJECTS):
        image = paint(
            image, x, y, scale * unit, s.shape[:, k], s.rgb[:, k], s.radius[:, k], paths[:, k]
        )
    return image * 2.0 - 1.0
