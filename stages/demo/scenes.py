"""A demo scene: one or two coloured shapes on a textured background, drawn with Pillow.

Each image has its own texture, so that a perceptual hash distinguishes scenes with equal attributes.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SIZE_PX = 64  # on disk; a JPEG of 32 pixels would smear the colours of small shapes
SUPERSAMPLE = 3  # drawn larger and downscaled, for soft edges
JPEG = {"quality": 90, "subsampling": 0}

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (240, 215, 45),
    "purple": (135, 50, 165),
    "orange": (245, 140, 30),
    "pink": (245, 150, 190),
    "cyan": (60, 205, 215),
}
GROUNDS = {"white": (235, 235, 235), "grey": (135, 135, 135), "black": (25, 25, 25), "brown": (120, 80, 50)}
SIZES = {
    "small": (0.14, 0.16),
    "large": (0.22, 0.24),
}  # min and max radius, as a fraction of the image's side
PLACES = tuple((row, column) for row in ("top", "middle", "bottom") for column in ("left", "middle", "right"))
_CENTRE = {"top": 0.24, "left": 0.24, "middle": 0.5, "bottom": 0.76, "right": 0.76}
_JITTER = 0.02
Fill = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. Its box (x, y, w, h) is in fractions of the image's side, from the top left."""

    shape: str
    colour: str
    size: str
    place: tuple[str, str]  # row, column
    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two objects on a background; ground: its colour."""

    things: tuple[Thing, ...]
    ground: str


def draw_scene(rng: np.random.Generator, two_things: float) -> Scene:
    """Returns a random scene; with probability `two_things` it has two objects (of different shape, colour and place)."""
    num = 2 if rng.random() < two_things else 1
    shapes = rng.permutation(SHAPES)[:num]
    colours = rng.permutation(list(COLOURS))[:num]
    places = rng.permutation(len(PLACES))[:num]
    things = [
        _thing(rng, str(shape), str(colour), PLACES[place])
        for shape, colour, place in zip(shapes, colours, places, strict=True)
    ]
    return Scene(tuple(things), str(rng.choice(list(GROUNDS))))


def _thing(rng: np.random.Generator, shape: str, colour: str, place: tuple[str, str]) -> Thing:
    size = str(rng.choice(list(SIZES)))
    radius = rng.uniform(*SIZES[size])
    y, x = (_CENTRE[word] + rng.uniform(-_JITTER, _JITTER) for word in place)
    return Thing(shape, colour, size, place, x - radius, y - radius, 2 * radius, 2 * radius)


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Renders an RGB image of SIZE_PX x SIZE_PX: smooth lighting, slightly rotated shapes, sensor noise."""
    from PIL import Image, ImageDraw

    side = SIZE_PX * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side), GROUNDS[scene.ground])
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        tint = np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, size=3)
        fill = tuple(np.clip(tint, 0, 255).tolist())
        _draw_thing(draw, thing, side, rng.uniform(-0.2, 0.2), fill, GROUNDS[scene.ground])
    small = np.asarray(canvas.reduce(SUPERSAMPLE), dtype=np.float32)
    light = Image.fromarray(rng.normal(0, 10, size=(5, 5)).astype(np.float32)).resize(
        (SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC
    )
    noisy = small + np.asarray(light)[:, :, None] + rng.normal(0, 4, size=small.shape).astype(np.float32)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def mask_of(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Returns what `render` draws with a generator in the same state as one number per pixel, as ADE20K's masks: 1 for the
    background, 2 for the first of SHAPES, 3 for the second and so on.
    """
    from PIL import Image, ImageDraw

    side = SIZE_PX * SUPERSAMPLE
    canvas = Image.new("L", (side, side), 1)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        rng.integers(-12, 13, size=3)  # the draws of `render`
        _draw_thing(draw, thing, side, rng.uniform(-0.2, 0.2), 2 + SHAPES.index(thing.shape), 1)
    return canvas.resize((SIZE_PX, SIZE_PX), Image.Resampling.NEAREST)


def _draw_thing(
    draw: ImageDraw.ImageDraw, thing: Thing, side: int, turn: float, fill: Fill, ground: Fill
) -> None:
    x, y, radius = (thing.x + thing.w / 2) * side, (thing.y + thing.h / 2) * side, thing.w / 2 * side
    if thing.shape in ("circle", "ring"):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        if thing.shape == "ring":
            hole = radius * 0.55
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=ground)
        return
    points = [
        (x + radius * r * math.sin(a + turn), y - radius * r * math.cos(a + turn))
        for r, a in _outline(thing.shape)
    ]
    draw.polygon(points, fill=fill)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Returns corners as (radius relative to the object's, clockwise angle from the vertical in radians)."""
    turn = 2 * math.pi
    if shape == "square":
        return [(1.1, turn * (k + 0.5) / 4) for k in range(4)]
    if shape == "triangle":
        return [(1.15, turn * k / 3) for k in range(3)]
    assert shape == "cross", shape
    arm = math.atan2(0.3, 1.05)
    tip, notch = math.hypot(0.3, 1.05), math.hypot(0.3, 0.3)
    return [
        corner
        for k in range(4)
        for corner in ((tip, turn * k / 4 - arm), (tip, turn * k / 4 + arm), (notch, turn * (k + 0.5) / 4))
    ]


def encode(image: Image.Image, kind: str) -> bytes:
    """Returns the encoded file; kind: `JPEG` or `PNG`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **(JPEG if kind == "JPEG" else {"compress_level": 1}))
    return buffer.getvalue()
