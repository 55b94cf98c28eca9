"""Texts in which an object, attribute or relation is replaced by another: UNIMO's hard negatives.

Li et al. 2021, https://arxiv.org/abs/2012.15409, section 2.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import seed_of
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.scene_graphs.parse import GRAPHS, KINDS
from vlpipe.stages.scene_graphs.words import read_words

REWRITE = pa.struct([("text", pa.string()), ("kind", pa.string())])  # kind: objects, attributes or relations
REWRITES = pa.list_(pa.list_(REWRITE))  # of each text of the row; null for a text without a scene graph
TRIES = 8  # draws of a word, until one fits


@dataclass(frozen=True, kw_only=True)
class Rewrites(MapStage):
    """Adds `rewrites` (REWRITES): for each text `num` texts in which one node of its scene graph is replaced by the words of
    another node of the same kind. Kinds take turns; what else a text says stays.

    words: of `scene_graphs.words:SceneWords`. same: groups of words that mean the same, such as [circle, disc], none of
    which replaces another. classes: groups whose words replace each other alone, such as [red, green, blue]; a word in none
    is replaced by one in none. A new word is never one that some text of the row says. How texts are rewritten depends
    only on `seed`, the row's id and its texts. Texts without a node that can be replaced get fewer. Counts: of each kind.
    """

    NAME: ClassVar[str] = "scene_graphs.rewrites:Rewrites"

    words: File
    num: Annotated[int, Field(ge=1)] = 3
    same: list[list[str]] = field(default_factory=list)
    classes: list[list[str]] = field(default_factory=list)
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "scene_graphs.rewrites", id=pa.string(), texts=TEXTS, scene_graphs=GRAPHS)
        return with_field(inp, pa.field("rewrites", REWRITES))

    @contextmanager
    def open(self) -> Iterator[Work]:
        choices = Choices(read_words(self.words.path), self.same, self.classes)

        def work(rows: pa.Table) -> Out:
            flat = FlatTexts(rows["texts"])
            graphs = flat.aligned("scene_graphs", rows["scene_graphs"]).to_pylist()
            texts, ids = flat.field("text").to_pylist(), rows["id"].to_pylist()
            said = [""] * len(rows)
            for text, row in zip(texts, flat.row.tolist(), strict=True):
                said[row] += f" {(text or '').lower()} "
            found: list[list[dict[str, str]] | None] = []
            for text, graph, row in zip(texts, graphs, flat.row.tolist(), strict=True):
                rng = np.random.default_rng(seed_of("rewrites", self.seed, ids[row], text))
                found.append(graph and self._rewritten(choices, text, graph, said[row], rng))
            counts = Counter(one["kind"] for some in found for one in some or ())
            return Out(
                with_columns(rows, rewrites=flat.nested(pa.array(found, pa.list_(REWRITE)))), counts=counts
            )

        yield work

    def _rewritten(
        self, choices: Choices, text: str, graph: Mapping[str, Any], said: str, rng: np.random.Generator
    ) -> list[dict[str, str]]:
        """Returns up to `num` different rewrites."""
        nodes = {kind: rng.permutation(len(graph[kind])).tolist() for kind in KINDS}
        found: dict[str, str] = {}
        kinds = rng.permutation(KINDS).tolist()
        for turn in range(len(KINDS) * self.num):
            kind = kinds[turn % len(kinds)]
            if nodes[kind]:
                one = graph[kind][nodes[kind][turn // len(kinds) % len(nodes[kind])]]
                new = choices.other(kind, text[one["start"] : one["end"]].lower(), said, rng)
                if new is not None:
                    found.setdefault(replaced(text, one["start"], one["end"], new), kind)
            if len(found) == self.num:
                break
        return [{"text": new, "kind": kind} for new, kind in found.items()]


def replaced(text: str, start: int, end: int, new: str) -> str:
    """Returns the text with characters `start` to `end` replaced, and the article before them as the new word needs it."""
    before = text[:start]
    for article, other in (("a ", "an "), ("an ", "a ")):
        ends = before.lower().endswith(article) and (
            len(before) == len(article) or before[-len(article) - 1] == " "
        )
        if ends and (new[0] in "aeiou") == (other == "an "):
            before = before[: len(before) - len(article) + 1] + other[1:]
            break
    return before + new + text[end:]


class Choices:
    """Words by kind and class, from which another word for one is drawn."""

    def __init__(
        self,
        words: Mapping[str, Sequence[str]],
        same: Sequence[Sequence[str]],
        classes: Sequence[Sequence[str]],
    ) -> None:
        self._same = {word.lower(): frozenset(w.lower() for w in group) for group in same for word in group}
        self._class = {word.lower(): k for k, group in enumerate(classes) for word in group}
        self._words: dict[tuple[str, int], list[str]] = {}
        for kind, found in words.items():
            for word in found:
                self._words.setdefault((kind, self._class.get(word, -1)), []).append(word)

    def other(self, kind: str, word: str, said: str, rng: np.random.Generator) -> str | None:
        """Returns a word of the same kind and class that `said` does not have; None if TRIES draws give none."""
        some = self._words.get((kind, self._class.get(word, -1)), [])
        for _ in range(TRIES if some else 0):
            new = some[int(rng.integers(len(some)))]
            means_the_same = {new, *self._same.get(new, ())}
            if not any(f" {one} " in said for one in means_the_same) and word not in means_the_same:
                return new
        return None
