"""Pairs of captions of one scene, one right and one wrong, that differ in exactly one thing.

Kinds as in SugarCrepe (https://arxiv.org/abs/2306.14610). A swap has the same words in another order, as the captions of
Winoground (https://arxiv.org/abs/2204.03162); `exchanged` is the scene for which its wrong caption is the right one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlpipe.stages.demo.captions import (
    COLOUR_WORDS,
    GROUND_WORDS,
    HUMAN,
    SHAPE_WORDS,
    Said,
    one_word,
    phrase,
    place_words,
    say,
)
from vlpipe.stages.demo.scenes import PLACES, Scene

SWAPS = ("swap_attribute", "swap_relation")  # of two objects: their colours, their positions
REPLACEMENTS = ("replace_object", "replace_attribute", "replace_relation")  # a shape, a colour, a position
KINDS = SWAPS + REPLACEMENTS
DETAIL = 0.85  # as in human captions
# Those of human captions that name all objects and may name their positions.
TEMPLATES = tuple((template, weight) for template, weight in HUMAN if "{thing}" in template)


def contrast(scene: Scene, kind: str, rng: np.random.Generator) -> tuple[str, str]:
    """Returns (right caption, wrong caption) of a scene. kind: one of KINDS.

    A replacement is a value that no object of the scene has, said of one of its objects. Raises ValueError for a swap in
    a scene without two objects.
    """
    if kind in SWAPS and len(scene.things) != 2:
        raise ValueError(f"{kind} needs a scene with two objects, this one has {len(scene.things)}")
    things = list(scene.things)
    if len(things) == 2 and rng.random() < 0.5:
        things.reverse()
    said = [say(thing, rng, DETAIL) for thing in things]
    if kind.endswith("relation"):
        said = [
            replace(one, place=one.place or place_words(thing.place, rng))
            for one, thing in zip(said, things, strict=True)
        ]
    if kind == "swap_attribute" and not all(one.size for one in said):
        said = [
            replace(one, size="") for one in said
        ]  # else an article would change: "a small ...", "an orange ..."
    weights = np.array([weight for _, weight in TEMPLATES], dtype=float)
    template = TEMPLATES[int(rng.choice(len(TEMPLATES), p=weights / weights.sum()))][0]
    ground = one_word(GROUND_WORDS[scene.ground], rng)
    wrong = _swapped(said, kind) if kind in SWAPS else _replaced(scene, said, kind, rng)
    right, other = (
        template.format(thing=" and ".join(phrase(one) for one in clauses), ground=ground)
        for clauses in (said, wrong)
    )
    return right, other


def _swapped(said: Sequence[Said], kind: str) -> list[Said]:
    first, second = said
    if kind == "swap_attribute":
        return [replace(first, colour=second.colour), replace(second, colour=first.colour)]
    return [replace(first, place=second.place), replace(second, place=first.place)]


def _replaced(scene: Scene, said: Sequence[Said], kind: str, rng: np.random.Generator) -> list[Said]:
    change: dict[str, Any]
    if kind == "replace_object":
        shape = _absent(SHAPE_WORDS, (thing.shape for thing in scene.things), rng)
        change = {"shape": one_word(SHAPE_WORDS[shape], rng)}
    elif kind == "replace_attribute":
        colour = _absent(COLOUR_WORDS, (thing.colour for thing in scene.things), rng)
        change = {"colour": one_word(COLOUR_WORDS[colour], rng)}
    else:
        assert kind == "replace_relation", kind
        change = {"place": place_words(_absent(PLACES, (thing.place for thing in scene.things), rng), rng)}
    at = int(rng.integers(len(said)))
    return [replace(one, **change) if k == at else one for k, one in enumerate(said)]


def _absent(values: Iterable[Any], there: Iterable[Any], rng: np.random.Generator) -> Any:
    taken = set(there)
    rest = [value for value in values if value not in taken]
    return rest[int(rng.integers(len(rest)))]


def exchanged(scene: Scene, kind: str) -> Scene:
    """Returns a scene of two objects with their colours (`swap_attribute`) or positions (`swap_relation`) exchanged."""
    one, other = scene.things
    if kind == "swap_attribute":
        return replace(scene, things=(replace(one, colour=other.colour), replace(other, colour=one.colour)))
    assert kind == "swap_relation", kind
    moved = tuple(
        replace(
            thing,
            place=place.place,
            x=place.x + (place.w - thing.w) / 2,
            y=place.y + (place.h - thing.h) / 2,
        )
        for thing, place in ((one, other), (other, one))
    )
    return replace(scene, things=moved)
