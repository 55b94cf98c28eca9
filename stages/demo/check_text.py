"""Decides if a text is correct for a scene: each word must be in the vocabulary of `captions`, each claim must be true."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlpipe.stages.demo import captions
from vlpipe.stages.demo.scenes import Scene, Thing


def _lookup(words: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: meaning for meaning, all_words in words.items() for word in all_words}


_MEANING = {
    "shape": _lookup(captions.SHAPE_WORDS),
    "colour": _lookup(captions.COLOUR_WORDS),
    "size": _lookup(captions.SIZE_WORDS),
    "ground": _lookup(captions.GROUND_WORDS),
    "row": _lookup(captions.ROW_WORDS),
    "column": _lookup(captions.COLUMN_WORDS),
    "centre": dict.fromkeys(captions.CENTRE_WORDS, "middle"),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """The claims of one clause: attribute -> the values named for it."""

    said: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def fits(self, thing: Thing) -> bool:
        """Returns True if all claims hold for `thing`. The background (`ground`) is not checked."""
        row, column = thing.place
        true = {"shape": thing.shape, "colour": thing.colour, "size": thing.size}
        if self.said.keys() & {"row", "column", "centre"}:
            true |= {"row": row, "column": column, "centre": "middle"}
            named = {name: value for name, value in (("row", row), ("column", column)) if value != "middle"}
            if any(name not in self.said for name in named) or ("centre" in self.said and named):
                return False
        return all(values == {true[name]} for name, values in self.said.items() if name != "ground")


def right(text: str, scene: Scene) -> bool:
    """Returns True if `text` has only known words, names a shape in each clause, and all its claims hold for the scene.

    Clauses are joined by "and"; each must be about a different object. Any clause may name the background.
    """
    claims = parse(text)
    return claims is not None and holds(claims, scene)


def holds(claims: Sequence[Claim], scene: Scene) -> bool:
    """Returns True if each clause names a shape, and all that they claim holds for the scene. See `right`."""
    if len(claims) > len(scene.things):
        return False
    grounds = frozenset().union(*(claim.said.get("ground", frozenset()) for claim in claims))
    if grounds - {scene.ground} or not all("shape" in claim.said for claim in claims):
        return False
    orders = [scene.things, scene.things[::-1]]
    return any(all(c.fits(t) for c, t in zip(claims, order, strict=False)) for order in orders)


def parse(text: str) -> list[Claim] | None:
    """Returns the clauses of a text; None if it has an unknown word."""
    claims: list[dict[str, set[str]]] = [{}]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        if word == "and":
            claims.append({})
            continue
        meant = [(name, words[word]) for name, words in _MEANING.items() if word in words]
        if not meant and word not in captions.FILLER:
            return None
        for name, value in meant:
            claims[-1].setdefault(name, set()).add(value)
    return [Claim({name: frozenset(values) for name, values in claim.items()}) for claim in claims]
