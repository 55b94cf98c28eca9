"""True boxes lie where the shapes were drawn."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import run_gather, run_map
from vlpipe.stages.demo.scenes import COLOURS, GROUNDS, SIZE_PX
from vlpipe.stages.demo.world import URL, World
from vlpipe.stages.ground_truth.boxes import TrueBoxes


def test_boxes_hold_the_shapes(tmp_path: Path) -> None:
    step = World(num_web=30, num_human=1, num_eval=1, two_things=0.5, duplicates=0, dead=0, corrupt=0)
    world = run_gather(step, [], tmp_path, say=lambda _: None).artifacts
    truth = {row["url"]: row for row in pq.read_table(world / "truth.parquet").to_pylist()}
    urls = [url for url, row in truth.items() if row["fault"] is None]
    table = pa.table(
        {
            "id": [*urls, "unknown"],
            "url": [*urls, "http://other.test/a.jpg"],
            "width": pa.array([SIZE_PX] * (len(urls) + 1), pa.int32()),
            "height": pa.array([SIZE_PX] * (len(urls) + 1), pa.int32()),
        }
    )
    out = run_map(TrueBoxes(truth=File(path=str(world / "truth.parquet"))), table)
    assert [(r.id, r.why) for r in out.rejects] == [("unknown", "not_in_truth")]
    for row in out.table.to_pylist():
        picture = np.asarray(
            Image.open(io.BytesIO((world / "images" / row["url"].removeprefix(URL)).read_bytes())).convert(
                "RGB"
            ),
            float,
        )
        ground = np.array(GROUNDS[truth[row["url"]]["ground"]])
        for one in row["objects"]:
            x1, y1, x2, y2 = one["box"]
            assert 0 <= x1 < x2 <= SIZE_PX
            assert 0 <= y1 < y2 <= SIZE_PX
            colour = np.array(COLOURS[one["attributes"][0]])
            near = np.abs(picture - colour).sum(2) < np.abs(picture - ground).sum(2)
            inside = near[round(y1) : round(y2), round(x1) : round(x2)]
            assert inside.mean() > 0.25, (row["url"], one)
