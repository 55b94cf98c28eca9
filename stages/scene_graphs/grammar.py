"""A rule parser of captions: which things a caption names, what it says of them, and what joins two of them.

Rules, applied from left to right in one pass, so that time is linear in the length of the text:

1. A run of words of no closed class is a noun phrase. Its last word is an OBJECT; those before it are ATTRIBUTES, and
   so are adjectives before "and" or a comma ("a black and white dog").
2. A run of adjectives alone is an object after a determiner or a relation ("on white"), and else says something of the
   object before it ("the dog is black").
3. A preposition, a verb, or a verb and its preposition ("sitting on") is a RELATION of the nearest object before it to
   the nearest after it, within a sentence. Words of place between prepositions are part of it ("on the left side of").
4. A preposition and words of place alone ("at top left") are an attribute of the object before them; at the start of a
   sentence, of the next one.
5. A participle before a noun is an attribute ("a smiling man"); a verb that no object follows says something of its subject.
6. "picture of", "group of" and the like name no thing.

Verbs are participles, and the forms in -s of the lexicon. What several objects share is said of the nearest alone: in "a cat
and a dog on a bed", the dog is on the bed. Words that the lexicon does not know count as nouns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from vlpipe.stages.scene_graphs.lexicon import (
    ADJECTIVES,
    CONTAINERS,
    ENDS,
    FINITE,
    NUMBERS,
    PHRASES,
    PLACES,
    Kind,
    alike,
    kind_of,
)

TOKEN = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*|[.,;:!?&()]")


class Span(NamedTuple):
    """Characters `start` to `end` of the text."""

    start: int
    end: int


class Attribute(NamedTuple):
    """What is said of object number `object`."""

    object: int
    start: int
    end: int


class Relation(NamedTuple):
    """What joins object number `subject` to object number `object`."""

    subject: int
    object: int
    start: int
    end: int


@dataclass
class SceneGraph:
    """Objects, attributes and relations of a text, in its order."""

    objects: list[Span] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)


def parse(text: str) -> SceneGraph:
    """Returns the scene graph of a caption; of a text without a noun, an empty one."""
    return _Parser(text).parse()


class _Parser:
    """State of one pass: the object that comes before, and what waits for the next one."""

    def __init__(self, text: str) -> None:
        found = [(m.group().lower(), Span(*m.span())) for m in TOKEN.finditer(text)]
        self.words: list[str] = [word for word, _ in found]
        self.spans: list[Span] = [span for _, span in found]
        self.kinds: list[Kind] = []
        for word in self.words:
            kind = kind_of(word)
            if word in FINITE and not self._has_subject():
                kind = "word"  # "a pair of skis", "the walks"
            self.kinds.append(kind)
        self.graph = SceneGraph()
        self.last: int | None = None
        self.relation: tuple[int, int, bool] | None = (
            None  # first token, the one after, whether it begins with a verb
        )
        self.attributes: list[Span] = []

    def _has_subject(self) -> bool:
        """Returns whether the next word may be a verb in -s: it follows a noun, "who", "which" or "that"."""
        if not self.kinds:
            return False
        return self.kinds[-1] == "word" or self.words[len(self.kinds) - 1] in ("who", "which", "that", "and")

    def parse(self) -> SceneGraph:
        at = 0
        while at < len(self.words):
            at = self._step(at)
        self._end()
        return self.graph

    def _step(self, at: int) -> int:
        """Takes what begins at token `at`; returns the token after it."""
        word, kind = self.words[at], self.kinds[at]
        if word in ENDS:
            self._end()
            return at + 1
        if num := self._phrase(at):
            return self._relate(at, at + num, verb=False)
        if kind == "relation":
            return self._preposition(at)
        if kind == "verb" and not self._is_modifier(at):
            return self._relate(at, at + 1, verb=True)
        if kind in ("word", "verb"):
            return self._noun_phrase(at)
        return at + 1

    def _end(self) -> None:
        """Ends the sentence."""
        self._drop_relation()
        self.last, self.attributes = None, []

    def _phrase(self, at: int) -> int:
        """Returns the number of words of a relation of several words at `at`, such as `in front of`; 0 if there is none."""
        for phrase in PHRASES:
            if tuple(self.words[at : at + len(phrase)]) == phrase:
                return len(phrase)
        return 0

    def _preposition(self, at: int) -> int:
        first = at + 1
        while first < len(self.words) and self.kinds[first] == "determiner":
            first += 1
        stop = first
        while stop < len(self.words) and self.words[stop] in PLACES:
            stop += 1
        belongs = stop < len(self.words) and self.kinds[stop] == "word" and self.words[stop] not in NUMBERS
        if stop == first or belongs:  # "on the shelf", "on the top shelf"
            return self._relate(at, at + 1, verb=False)
        follows = self.words[stop] if stop < len(self.words) else "."
        if follows == "of":
            return self._relate(at, stop + 1, verb=False)
        self._drop_relation()
        self._say(self._span(first, stop))
        return stop

    def _is_noun_part(self, at: int) -> bool:
        return at < len(self.words) and self.kinds[at] == "word"

    def _is_modifier(self, at: int) -> bool:
        """Returns whether the participle at `at` stands before a noun: no noun before it in the phrase, one after it."""
        if self.words[at] in FINITE or not self._is_noun_part(at + 1):
            return False
        return self.last is None or (at > 0 and self.kinds[at - 1] in ("determiner", "relation"))

    def _relate(self, start: int, stop: int, *, verb: bool) -> int:
        """Keeps tokens `start` to `stop` as a relation that waits for its object."""
        if self.relation is not None and self.relation[2] and not verb and self.relation[1] == start:
            self.relation = self.relation[0], stop, True  # "sitting on"
        else:
            self._drop_relation()
            self.relation = start, stop, verb
        return stop

    def _drop_relation(self) -> None:
        """Gives up a relation without an object: a verb says something of its subject."""
        if self.relation is not None and self.relation[2] and self.last is not None:
            self.graph.attributes.append(Attribute(self.last, *self._span(*self.relation[:2])))
        self.relation = None

    def _span(self, start: int, stop: int) -> Span:
        """Returns the characters of tokens `start` to `stop`."""
        return Span(self.spans[start].start, self.spans[stop - 1].end)

    def _say(self, span: Span) -> None:
        """Says something of the object before; without one, of the next."""
        if self.last is None:
            self.attributes.append(span)
        else:
            self.graph.attributes.append(Attribute(self.last, *span))

    def _noun_phrase(self, at: int) -> int:
        stop = at + 1
        only_adjectives = self.words[at] in ADJECTIVES
        while stop < len(self.words) and not self._phrase(stop):
            participle = only_adjectives and self.kinds[stop] == "verb" and self._is_noun_part(stop + 1)
            if self.kinds[stop] != "word" and not participle:
                break
            only_adjectives = only_adjectives and (participle or self.words[stop] in ADJECTIVES)
            stop += 1
        spans, words = self.spans[at:stop], self.words[at:stop]
        follows = self.words[stop] if stop < len(self.words) else "."
        if follows == "of" and words[-1] in CONTAINERS:
            return stop + 1
        before = self.kinds[at - 1] if at else "stop"
        if all(word in ADJECTIVES for word in words):
            joined = self.kinds[stop : stop + 2] == ["and", "word"] and alike(words[-1], self.words[stop + 1])
            if joined and (before in ("determiner", "stop") or self.attributes):
                self.attributes += spans  # "a black and white dog"
                return stop + 1
            if before not in ("determiner", "relation") and self.last is not None:
                for span in spans:
                    self._say(span)
                return stop
        self._name(spans)
        return stop

    def _name(self, spans: list[Span]) -> None:
        """Adds an object, the last of `spans`, with what waits for it."""
        number = len(self.graph.objects)
        self.graph.objects.append(spans[-1])
        for span in [*self.attributes, *spans[:-1]]:
            self.graph.attributes.append(Attribute(number, *span))
        if self.relation is not None and self.last is not None:
            self.graph.relations.append(Relation(self.last, number, *self._span(*self.relation[:2])))
        self.last, self.relation, self.attributes = number, None, []
