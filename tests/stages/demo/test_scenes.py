"""The pictures show what the truth says: colour under the object, ground beside it, size as named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vlpipe.stages.demo.scenes import (
    COLOURS,
    GROUNDS,
    PLACES,
    SHAPES,
    SIZE_PX,
    Scene,
    Thing,
    draw_scene,
    encode,
    render,
)


def _at(image: Image.Image, x: float, y: float) -> np.ndarray:
    px = np.asarray(image, dtype=float)
    column, row = round(x * SIZE_PX), round(y * SIZE_PX)
    return px[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "ring"])
def test_the_middle_of_the_box_has_the_colour_and_the_far_corner_the_ground(shape: str) -> None:
    for index, (colour, rgb) in enumerate(COLOURS.items()):
        ground = list(GROUNDS)[index % len(GROUNDS)]
        scene = Scene((Thing(shape, colour, "large", ("top", "left"), 0.1, 0.1, 0.36, 0.36),), ground)
        image = render(scene, np.random.default_rng(index))
        assert np.abs(_at(image, 0.28, 0.28) - rgb).max() < 60
        assert np.abs(_at(image, 0.9, 0.9) - GROUNDS[ground]).max() < 60


def test_shapes_differ_in_their_pixels() -> None:
    def mask(shape: str) -> np.ndarray:
        scene = Scene((Thing(shape, "red", "large", ("middle", "middle"), 0.3, 0.3, 0.4, 0.4),), "black")
        return np.asarray(render(scene, np.random.default_rng(0)))[:, :, 0] > 120

    masks = {shape: mask(shape) for shape in SHAPES}
    for one in SHAPES:
        for other in SHAPES:
            overlap = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
            assert one == other or overlap < 0.87, (one, other, overlap)


def test_random_scenes_stay_inside_and_cover_the_language() -> None:
    rng = np.random.default_rng(0)
    things = [thing for _ in range(500) for thing in draw_scene(rng, 0.2).things]
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.place for t in things} == set(PLACES)
    assert min(min(t.x, t.y) for t in things) > -0.06
    assert max(max(t.x + t.w, t.y + t.h) for t in things) < 1.06
    small, large = ([t.w for t in things if t.size == size] for size in ("small", "large"))
    assert max(small) * 1.2 < min(large)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_encoding_keeps_colours(kind: str) -> None:
    rng = np.random.default_rng(1)
    image = render(draw_scene(rng, 0.0), rng)
    data = encode(image, kind)
    back = Image.open(io.BytesIO(data))
    assert back.format == kind
    assert np.abs(np.asarray(back, dtype=float) - np.asarray(image)).mean() < (0.01 if kind == "PNG" else 5)
    assert len(data) < 16_000
