"""Scene graphs of captions, as a column: ERNIE-ViL masks their words, UNIMO replaces them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import Out, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.scene_graphs.grammar import SceneGraph, parse

_SPAN = [("start", pa.int32()), ("end", pa.int32())]
GRAPH = pa.struct(
    [
        ("objects", pa.list_(pa.struct(_SPAN))),
        ("attributes", pa.list_(pa.struct([("object", pa.int32()), *_SPAN]))),
        ("relations", pa.list_(pa.struct([("subject", pa.int32()), ("object", pa.int32()), *_SPAN]))),
    ]
)
KINDS = tuple(GRAPH.names)  # objects, attributes, relations
GRAPHS = pa.list_(GRAPH)  # column `scene_graphs`: of each text of the row, null for one that has none


@dataclass(frozen=True, kw_only=True)
class SceneGraphs(MapStage):
    """Adds `scene_graphs` (GRAPHS): objects, attributes and relations of each text, by the rules of `grammar`.

    start, end: characters of the text, end excluded. object, subject: places in the graph's `objects`. Dropped texts get
    null. Counts: `objects`, `attributes`, `relations`, `without_objects` (texts). English.
    """

    NAME: ClassVar[str] = "scene_graphs.parse:SceneGraphs"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "scene_graphs.parse", id=pa.string(), texts=TEXTS)
        return with_field(inp, pa.field("scene_graphs", GRAPHS))

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._parsed

    def _parsed(self, rows: pa.Table) -> Out:
        flat = FlatTexts(rows["texts"])
        graphs = [
            parse(text or "") if kept else None
            for text, kept in zip(flat.field("text").to_pylist(), flat.kept().tolist(), strict=True)
        ]
        there = [graph for graph in graphs if graph is not None]
        counts = {name: sum(len(getattr(graph, name)) for graph in there) for name in KINDS}
        counts["without_objects"] = sum(not graph.objects for graph in there)
        column = flat.nested(pa.array([graph and _plain(graph) for graph in graphs], GRAPH))
        return Out(with_columns(rows, scene_graphs=column), counts=counts)


def _plain(graph: SceneGraph) -> dict[str, list[dict[str, int]]]:
    """Returns a graph as a value of GRAPH."""
    spans: dict[str, list[Any]] = {name: getattr(graph, name) for name in KINDS}
    return {name: [one._asdict() for one in found] for name, found in spans.items()}
