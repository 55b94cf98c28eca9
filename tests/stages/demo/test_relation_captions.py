from __future__ import annotations

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.demo.tasks.relation_captions import RelationCaptions, caption
from vlpipe.stages.scene_graphs.grammar import parse

RING = {"box": [0, 0, 10, 10], "label": "ring", "attributes": ["orange", "small"]}
BOX = {"box": [20, 40, 30, 60], "label": "square", "attributes": ["blue", "large"]}
OTHER = {"box": [40, 5, 50, 15], "label": "cross", "attributes": ["red", "small"]}


def test_captions_are_true_and_parsed() -> None:
    said = {caption([RING, BOX], np.random.default_rng(k)) for k in range(60)}
    assert said == {
        text
        for ring in ("an orange ring", "a small orange ring")
        for box in ("a blue square", "a large blue square")
        for text in (f"{ring} above {box}", f"{box} below {ring}")
    }
    for k in range(20):
        found = caption([RING, OTHER], np.random.default_rng(k))
        first, relation, second = found.partition(f" to the {'left' if 'ring to' in found else 'right'} of ")
        assert relation
        assert first.endswith("ring") == ("left" in relation)
        graph = parse(found)
        assert [found[one.start : one.end] for one in graph.relations] == [relation.strip()]
        assert [found[one.start : one.end] for one in graph.objects] == [
            first.split()[-1],
            second.split()[-1],
        ]


def test_rows_without_two_objects_are_rejected() -> None:
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "texts": pa.array([[text("old", "web")]] * 3, TEXTS),
            "objects": pa.array([[RING, BOX], [RING], None], OBJECTS),
        }
    )
    out = run_map(RelationCaptions(), table)
    (texts,) = out.table["texts"].to_pylist()
    assert [one["source"] for one in texts] == ["human"]
    assert "ring" in texts[0]["text"]
    assert {(one.id, one.why, one.detail) for one in out.rejects} == {
        ("b", "not_two_objects", "1 objects"),
        ("c", "not_two_objects", "0 objects"),
    }
