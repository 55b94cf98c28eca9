"""Generates captions of demo scenes from templates and a fixed vocabulary, with synonyms and a varying amount of detail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlpipe.stages.demo.scenes import Scene, Thing

# Value of an attribute -> its words. The first one is the most common; `check_text` accepts all of them.
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
}
COLOUR_WORDS = {
    "red": ("red",),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "purple": ("purple", "violet"),
    "orange": ("orange",),
    "pink": ("pink",),
    "cyan": ("cyan", "turquoise"),
}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
GROUND_WORDS = {"white": ("white",), "grey": ("grey",), "black": ("black",), "brown": ("brown",)}
ROW_WORDS = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}
COLUMN_WORDS = {"left": ("left",), "right": ("right",)}
CENTRE_WORDS = ("middle", "centre")
_FILLER = "a an the in at on of with there is background picture image scene corner side part , ."
FILLER = frozenset(_FILLER.split())

# (template, weight). {thing}: objects, which may be followed by their position; {bare}: the first object, without position;
# {place}: its position. Templates are short, because training cost grows with text length.
HUMAN = (
    ("{thing} on {ground}", 4),
    ("{thing} , {ground} background", 2),
    ("{ground} picture with {thing}", 1),
    ("{place} {bare} on {ground}", 2),
    ("there is {thing}", 1),
)
WEB = (
    ("{thing} on {ground}", 3),
    ("{thing} , {ground} background", 1),
    ("{thing}", 2),
    ("picture of {thing}", 1),
    ("{ground} background with {thing}", 1),
)


@dataclass(frozen=True, slots=True)
class Said:
    """The words that a caption has for one object. size, place: empty if it does not name them."""

    colour: str
    shape: str
    size: str = ""
    place: str = ""


def human_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Returns a correct, detailed caption: most objects have a size and a position."""
    return _caption(scene, rng, HUMAN, detail=0.85)


def web_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Returns a correct alt-text, in which sizes and positions are omitted more often than in human captions."""
    return _caption(scene, rng, WEB, detail=0.6)


def _caption(
    scene: Scene, rng: np.random.Generator, templates: tuple[tuple[str, int], ...], detail: float
) -> str:
    weights = np.array([weight for _, weight in templates], dtype=float)
    template = templates[int(rng.choice(len(templates), p=weights / weights.sum()))][0]
    things = list(scene.things)
    if len(things) == 2 and rng.random() < 0.5:
        things.reverse()
    parts = [phrase(say(thing, rng, detail, with_place="{place}" not in template)) for thing in things]
    if "{place}" in template:  # {place} is the position of the first object; the second one is not named
        parts = parts[:1]
    return template.format(
        thing=" and ".join(parts),
        bare=parts[0],
        place=place_words(things[0].place, rng),
        ground=one_word(GROUND_WORDS[scene.ground], rng),
    )


def say(thing: Thing, rng: np.random.Generator, detail: float, with_place: bool = True) -> Said:
    """Returns words for an object. detail: probability that its size is named, and, if `with_place`, its position."""
    colour, shape = one_word(COLOUR_WORDS[thing.colour], rng), one_word(SHAPE_WORDS[thing.shape], rng)
    size = one_word(SIZE_WORDS[thing.size], rng) if rng.random() < detail else ""
    place = place_words(thing.place, rng) if with_place and rng.random() < detail else ""
    return Said(colour, shape, size, place)


def phrase(said: Said) -> str:
    """Returns the words of one object with its article, such as `a small red circle at top left`."""
    words = [word for word in (said.size, said.colour, said.shape) if word]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words, *([said.place] if said.place else [])])


def place_words(place: tuple[str, str], rng: np.random.Generator) -> str:
    """Returns the words for a position (row, column), such as `at top left`."""
    row, column = place
    if row == column == "middle":
        return f"in the {one_word(CENTRE_WORDS, rng)}"
    if row == "middle":
        return f"on the {column}"
    if column == "middle":
        return f"at the {row}"
    return f"at {one_word(ROW_WORDS[row], rng)} {column}"


def one_word(words: tuple[str, ...], rng: np.random.Generator) -> str:
    """Returns the first word, the most common one, with probability 0.67, else a random other one."""
    return words[0] if len(words) == 1 or rng.random() < 0.67 else words[int(rng.integers(1, len(words)))]
