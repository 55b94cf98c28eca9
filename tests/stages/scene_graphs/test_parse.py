from __future__ import annotations

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.scene_graphs.parse import GRAPHS, SceneGraphs


def rows(*texts: list[dict[str, object]] | None) -> pa.Table:
    return pa.table({"id": [f"r{k}" for k in range(len(texts))], "texts": pa.array(texts, TEXTS)})


def test_a_graph_for_each_text() -> None:
    table = rows(
        [text("a red ring on white", "web"), text("bad", "web", kept=False), text("the", "web")], None, []
    )
    out = run_map(SceneGraphs(), table)
    assert out.table.schema.field("scene_graphs").type == GRAPHS
    found = out.table["scene_graphs"].to_pylist()
    graph = {
        "objects": [{"start": 6, "end": 10}, {"start": 14, "end": 19}],
        "attributes": [{"object": 0, "start": 2, "end": 5}],
        "relations": [{"subject": 0, "object": 1, "start": 11, "end": 13}],
    }
    empty: dict[str, list[dict[str, int]]] = {"objects": [], "attributes": [], "relations": []}
    assert found == [[graph, None, empty], [], []]
    assert out.counts == {"objects": 2, "attributes": 1, "relations": 1, "without_objects": 1}


def test_texts_are_needed() -> None:
    with pytest.raises(SchemaError, match="texts"):
        SceneGraphs().schema(pa.schema([("id", pa.string())]))
