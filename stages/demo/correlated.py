"""The layout `correlated`: nine objects of which each tells what stands beside it.

Scenes of independent objects have nothing that CPC, jigsaw puzzles or relative location could learn: no region says what
the next one holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlpipe.stages.demo.scenes import COLOURS, GROUNDS, SHAPES, Scene, Thing, render

if TYPE_CHECKING:
    from PIL import Image

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
RADIUS = (
    0.12,
    0.14,
)  # min and max, as a fraction of the image's side; an object stays within its ninth of the image
JITTER = 0.01
MIDDLE = 4


def draw_correlated(rng: np.random.Generator) -> Scene:
    """Returns a scene of nine objects, row by row, each in the middle of its ninth of the image.

    From a row to the next one, shapes go on by one in the order of SHAPES, which is a circle; from a column to the next one,
    colours in the order of COLOURS. What comes first, and the background, is random.
    """
    shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
    colours = list(COLOURS)
    things = []
    for row, vertical in enumerate(ROWS):
        for column, horizontal in enumerate(COLUMNS):
            radius = rng.uniform(*RADIUS)
            x, y = ((k + 0.5) / 3 + rng.uniform(-JITTER, JITTER) for k in (column, row))
            things.append(
                Thing(
                    SHAPES[(shape + row) % len(SHAPES)],
                    colours[(colour + column) % len(colours)],
                    "small",
                    (vertical, horizontal),
                    x - radius,
                    y - radius,
                    2 * radius,
                    2 * radius,
                )
            )
    return Scene(tuple(things), str(rng.choice(list(GROUNDS))))


def correlated_picture(rng: np.random.Generator) -> tuple[Scene, Image.Image]:
    """Returns what texts and ground truth speak of, the object in the middle, and the picture of all nine."""
    scene = draw_correlated(rng)
    return Scene((scene.things[MIDDLE],), scene.ground), render(scene, rng)
