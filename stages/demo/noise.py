"""Generates wrong alt-texts of four kinds that are common on the web."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from vlpipe.stages.demo.captions import web_caption
from vlpipe.stages.demo.check_text import right
from vlpipe.stages.demo.scenes import COLOURS, GROUNDS, PLACES, SHAPES, SIZES, Scene

T = TypeVar("T")

KINDS = {
    "other_image": 0.4,
    "wrong_attribute": 0.25,
    "junk": 0.2,
    "near_empty": 0.15,
}  # fractions of the wrong texts

_NEAR_EMPTY = ("photo", "image", "img", "picture", "-", "...", "untitled", "1", "pic", "n/a")
_JUNK = (
    "IMG_{n:04d} best price",
    "DSC_{n:04d}.JPG",
    "buy now {k}% off free shipping",
    "stock photo {n:04d} download",
    "click to enlarge {n:04d}",
    "sale {k}% best price online",
    "user{n:04d} uploaded a file",
)


def wrong_text(scene: Scene, others: Sequence[Scene], rng: np.random.Generator) -> tuple[str, str]:
    """Returns (text, kind of noise: one of KINDS). The text is never correct for `scene`, not even by chance.

    others: scenes that a text of kind `other_image` may describe.
    """
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind == "junk":
        template = _JUNK[int(rng.integers(len(_JUNK)))]
        return template.format(n=int(rng.integers(10_000)), k=int(rng.integers(1, 9)) * 10), kind
    if kind == "near_empty":
        return _NEAR_EMPTY[int(rng.integers(len(_NEAR_EMPTY)))], kind
    while True:
        described = others[int(rng.integers(len(others)))] if kind == "other_image" else _altered(scene, rng)
        text = web_caption(described, rng)
        if not right(text, scene):
            return text, kind


def _altered(scene: Scene, rng: np.random.Generator) -> Scene:
    """Returns the scene with one change: an attribute of one object, or the background."""
    name = str(rng.choice(["shape", "colour", "size", "place", "ground"]))
    if name == "ground":
        return replace(scene, ground=_another(scene.ground, list(GROUNDS), rng))
    values: dict[str, Sequence[object]]
    values = {"shape": SHAPES, "colour": list(COLOURS), "size": list(SIZES), "place": PLACES}
    at = int(rng.integers(len(scene.things)))
    thing = scene.things[at]
    change: Any = {name: _another(getattr(thing, name), values[name], rng)}
    changed = replace(thing, **change)
    return replace(scene, things=(*scene.things[:at], changed, *scene.things[at + 1 :]))


def _another(value: T, values: Sequence[T], rng: np.random.Generator) -> T:
    rest = [v for v in values if v != value]
    return rest[int(rng.integers(len(rest)))]
