"""A demo film: a sequence of segments, each with a shape that moves over a background, drawn like the demo's images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vlpipe.stages.demo.scenes import COLOURS, GROUNDS, PLACES, SHAPES, SIZES, Scene, Thing, render

FPS = 10
NEAR, FAR = 0.26, 0.74  # start and end of a movement, as a fraction of the side
WAYS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}  # motion -> direction (x, y)
MOTIONS = (*WAYS, "grows", "shrinks", "still")
GROWTH = (0.10, 0.24)  # min and max radius, as a fraction of the side
LENGTH_S = (3.0, 6.0)  # min and max duration of a segment


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a film, in which the first object moves and a second one, if any, does not.

    scene: objects and their boxes at `start_s`. motion: one of MOTIONS.
    """

    start_s: float
    end_s: float
    scene: Scene
    motion: str

    def at(self, time_s: float) -> Scene:
        """Returns the scene at a time of the video."""
        part = (time_s - self.start_s) / (self.end_s - self.start_s)
        return replace(
            self.scene, things=(moved(self.scene.things[0], self.motion, part), *self.scene.things[1:])
        )


def draw_film(
    rng: np.random.Generator,
    num_segments: int,
    two_things: float,
    length_s: tuple[float, float] = LENGTH_S,
) -> list[Segment]:
    """Returns consecutive segments, whose first objects differ in shape or colour from one segment to the next.

    Durations are drawn from `length_s` and rounded to 0.1 s. two_things: probability of a second object in a segment.
    """
    segments: list[Segment] = []
    start_s = 0.0
    while len(segments) < num_segments:
        long_s = round(float(rng.uniform(*length_s)), 1)
        motion = str(rng.choice(MOTIONS))
        things = _things(rng, motion, 2 if rng.random() < two_things else 1)
        before = segments[-1].scene.things[0] if segments else None
        if before and (before.shape, before.colour) == (things[0].shape, things[0].colour):
            continue
        scene = Scene(things, str(rng.choice(list(GROUNDS))))
        segments.append(Segment(round(start_s, 1), round(start_s + long_s, 1), scene, motion))
        start_s += long_s
    return segments


def same_objects(rng: np.random.Generator, segments: Sequence[Segment]) -> list[Segment]:
    """Returns the segments with the objects and the ground of the first one; no motion comes again before all have come."""
    first = segments[0].scene
    found: list[Segment] = []
    left: list[str] = []
    for segment in segments:
        left = left or [str(one) for one in rng.permutation(MOTIONS)]
        motion = left.pop()
        looks = [(one.shape, one.colour, one.size, rng.uniform(*SIZES[one.size])) for one in first.things]
        scene = Scene(_placed(motion, looks, rng.permutation([NEAR, FAR])), first.ground)
        found.append(replace(segment, scene=scene, motion=motion))
    return found


def _things(rng: np.random.Generator, motion: str, num: int) -> tuple[Thing, ...]:
    shapes, colours = rng.permutation(SHAPES), rng.permutation(list(COLOURS))
    lanes = rng.permutation([NEAR, FAR])
    sizes = [str(rng.choice(list(SIZES))), "small"][:num]
    looks = [
        (str(s), str(c), z, rng.uniform(*SIZES[z])) for s, c, z in zip(shapes, colours, sizes, strict=False)
    ]
    return _placed(motion, looks, lanes)


def _placed(
    motion: str, looks: Sequence[tuple[str, str, str, float]], lanes: npt.NDArray[np.float64]
) -> tuple[Thing, ...]:
    """Returns the objects of (shape, colour, size, radius): the first in its own lane, so that it does not move over the
    second."""
    centre = (float(lanes[0]),) * 2 if motion not in WAYS else _start(motion, float(lanes[0]))
    other = (0.5, float(lanes[1])) if motion in ("right", "left") else (float(lanes[1]), 0.5)
    things = [_thing(*look[:3], at, look[3]) for look, at in zip(looks, (centre, other), strict=False)]
    return (moved(things[0], motion, 0), *things[1:])


def _start(motion: str, lane: float) -> tuple[float, float]:
    x, y = WAYS[motion]
    return (NEAR if x > 0 else FAR, lane) if x else (lane, NEAR if y > 0 else FAR)


def _thing(shape: str, colour: str, size: str, centre: tuple[float, float], radius: float) -> Thing:
    x, y = centre
    column, row = (int(3 * at) for at in centre)
    return Thing(
        shape, colour, size, PLACES[3 * row + column], x - radius, y - radius, 2 * radius, 2 * radius
    )


def moved(thing: Thing, motion: str, part: float) -> Thing:
    """Returns the object after `part` (0 to 1) of its motion. motion: one of MOTIONS."""
    if motion in WAYS:
        right, down = WAYS[motion]
        way = (FAR - NEAR) * part
        return replace(thing, x=thing.x + right * way, y=thing.y + down * way)
    if motion == "still":
        return thing
    low, high = GROWTH if motion == "grows" else GROWTH[::-1]
    radius = low + (high - low) * part
    x, y = thing.x + thing.w / 2, thing.y + thing.h / 2
    return replace(thing, x=x - radius, y=y - radius, w=2 * radius, h=2 * radius)


def pictures(segments: Sequence[Segment], seed: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the frames (SIZE_PX, SIZE_PX, 3) at FPS; frame k is at time k / FPS. The texture is fixed within a segment."""
    for number in range(round(segments[-1].end_s * FPS)):
        time_s = number / FPS
        index = next(k for k, one in enumerate(segments) if time_s < one.end_s)
        yield np.asarray(render(segments[index].at(time_s), np.random.default_rng([*seed, index])))
