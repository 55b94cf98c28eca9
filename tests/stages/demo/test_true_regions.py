"""Regions of ground truth: one per object, with the colours that stand in its box."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.demo.scenes import COLOURS, SHAPES
from vlpipe.stages.demo.true_regions import TrueRegions


def test_regions_of_an_image() -> None:
    image = Image.new("RGB", (60, 40), (0, 0, 0))
    image.paste((255, 0, 0), (10, 10, 20, 20))
    image.paste((0, 0, 255), (20, 10, 30, 20))
    file = io.BytesIO()
    image.save(file, "PNG")
    objects = [
        {"box": [10, 10, 30, 20], "label": "ring", "attributes": ["pink", "small"]},
        {"box": [40, 20, 60, 40], "label": "cross", "attributes": ["large", "cyan"]},
    ]
    table = pa.table(
        {
            "id": ["one", "none", "broken"],
            "objects": pa.array([objects, [], objects], OBJECTS),
            "image": pa.array([file.getvalue(), file.getvalue(), b"no image"]),
        }
    )
    out = run_map(TrueRegions(grid=2), table)
    assert [r.id for r in out.rejects] == ["none", "broken"]
    assert out.rejects[0].why == "no_regions"
    (row,) = out.table.to_pylist()
    assert row["region_tags"] == ["ring", "cross"]
    first, second = row["regions"]
    np.testing.assert_allclose(
        np.array(first["feat"], float).reshape(2, 2, 3),
        [[[1, -1, -1], [-1, -1, 1]]] * 2,
        atol=1e-3,
    )
    assert set(map(float, second["feat"])) == {-1.0}
    assert [one["box"] for one in (first, second)] == [[10, 10, 30, 20], [40, 20, 60, 40]]
    assert [one["obj"] for one in (first, second)] == [SHAPES.index("ring"), SHAPES.index("cross")]
    assert [one["attr"] for one in (first, second)] == [list(COLOURS).index(c) for c in ("pink", "cyan")]
