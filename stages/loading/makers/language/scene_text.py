"""The text of a sample, with the scene graph that a step before has parsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import Item
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row

NODE, KIND, NEEDS = "node", "node_kind", "node_needs"  # keys of notes of an item
NODES = ("object", "attribute", "relation")


@dataclass(frozen=True, kw_only=True)
class SceneText(Text):
    """As `Text`, of rows with the column `scene_graphs` (`scene_graphs.parse`).

    For corruptors, `node` (L,) is the number of the node that each token is part of, -1 for none; `node_kind` (N,) the place
    of its kind in NODES; `node_needs` (N, 2) the objects of an attribute or a relation, -1 for none. Nodes that are cut off
    have no tokens. Raises VlpipeError for a row whose graphs are not those of its texts.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("texts", "scene_graphs")

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        item = super().__call__(row, text, rng)
        graph = {} if row is None else graph_of(row, text)
        return {**item, **self._nodes(graph, text, len(item["data"]))}

    def _nodes(self, graph: dict[str, Any], text: str, length: int) -> dict[str, npt.NDArray[np.int64]]:
        kinds: list[int] = []
        needs: list[tuple[int, int]] = []
        spans: list[tuple[int, int]] = []
        for kind, name in enumerate(NODES):
            for one in graph.get(f"{name}s") or ():
                kinds.append(kind)
                needs.append((one.get("object", -1), one.get("subject", -1)))
                spans.append((one["start"], one["end"]))
        return {
            NODE: self._node_of_tokens(spans, text, length),
            KIND: np.array(kinds, np.int64),
            NEEDS: np.array(needs, np.int64).reshape(-1, 2),
        }

    def _node_of_tokens(
        self, spans: Sequence[tuple[int, int]], text: str, length: int
    ) -> npt.NDArray[np.int64]:
        """Returns (length,): which of `spans` each token of the item lies in. Start token and prompt come first."""
        of_char = np.full(len(text) + 1, -1)
        for node, (start, end) in enumerate(spans):
            of_char[start:end] = node
        before = max(1, self.prompt_length)
        found = np.full(length, -1)
        for at, (start, end) in enumerate(self.tokenizer.spans(text)[1], before):
            if at < length - 1 and end > start:
                found[at] = of_char[start:end].max()
        return found


def graph_of(row: Row, text: str) -> dict[str, Any]:
    """Returns the scene graph of one of a row's texts."""
    texts, graphs = (row.columns[name].as_py() for name in ("texts", "scene_graphs"))
    if len(texts) != len(graphs or ()):
        raise VlpipeError(
            f"scene_text: row {row.id} has {len(texts)} texts and {len(graphs or ())} scene graphs; parse them in a step "
            "after the last one that adds texts"
        )
    found = next(
        (graph for one, graph in zip(texts, graphs, strict=True) if one["text"] == text and graph), None
    )
    if found is None:
        raise VlpipeError(
            f"scene_text: a text of row {row.id} has no scene graph; parse them in a step before"
        )
    return dict(found)
