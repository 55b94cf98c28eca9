"""The page has at most 10 MB, whatever the data; what it leaves out, it says."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from vlpipe.pipeline.shard import Reject, heavy
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.row import LOSSES, RESULTS, TEXTS, text
from vlpipe.stages.report.gallery import NUM_DROPPED, NUM_KEPT
from vlpipe.stages.report.page import MAX_BYTES, RunView, StepView, fitting, render

ROWS = pa.schema([("id", pa.string()), ("url", pa.string()), ("texts", TEXTS), heavy("image", pa.binary())])


def noise(rng: np.random.Generator) -> bytes:
    """A JPEG that compresses badly."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (400, 400, 3), np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_a_page_has_at_most_10_mb(tmp_path: Path) -> None:
    """Noise as images, long URLs, many long texts per row; many steps, reasons, parameters, figures and curves."""
    rng = np.random.default_rng(0)
    said = [{**text("word " * 200, "web"), "score": 0.5, "kept": k % 2 == 0} for k in range(300)]
    rows = [
        {"id": f"{k}" * 400, "url": "http://a.test/" + "x" * 50_000, "texts": said, "image": noise(rng)}
        for k in range(26)
    ]
    images = dataset(tmp_path / "images", pa.Table.from_pylist(rows, ROWS))
    reasons = {f"filtered:rule_{k}_{'y' * 300}": 5 for k in range(5000)}
    gone = [Reject(str(row["id"]), "filtered", "bad", "d" * 9000) for row in rows]
    figures = {"name": [f"figure {k}" for k in range(500)], "value": [0.5] * 500, "num_rows": [1] * 500}
    named = [f"loss {k % 30}" for k in range(6000)]
    lines = {"step": list(range(6000)), "name": named, "value": rng.random(6000)}
    shared = {
        "results": dataset(tmp_path / "results", pa.table(figures, schema=RESULTS)),
        "losses": dataset(tmp_path / "losses", pa.table(lines, schema=LOSSES)),
    }
    params = {f"p{j}": "z" * 2000 for j in range(9)}
    steps = [
        StepView(name="images", use="a:B", status="done", rows_in=26, dataset=images, alarms=["w" * 9999] * 99),
        StepView(name="kept", use="a:B", status="done", rows_in=26, inputs=("images",), rejects=reasons,
                 counts=reasons, rejects_sample=gone, dataset=images),
        *(StepView(name=f"{name} {k}", use="a:B", status="done", params=params, dataset=shared[name])
          for k in range(80) for name in shared),
    ]  # fmt: skip
    page = render(RunView(title="t", description="about " * 100_000, steps=steps))
    assert 2_000_000 < len(page.encode()) < MAX_BYTES == 10_000_000
    assert "left out" not in page  # each part keeps to its share
    assert page.count("<article") == NUM_KEPT + NUM_DROPPED
    for note in (
        "and 292 more texts",
        "and 4,976 more",
        "and 79 more",
        "500 figures of 80 evaluations in all",
    ):
        assert note in page, note


def test_a_table_of_very_many_steps_says_how_many_it_leaves_out(tmp_path: Path) -> None:
    params = {f"p{j}": "z" * 2000 for j in range(40)}
    steps = [StepView(name=f"s{k}" * 20, use="a:B", status="done", params=params) for k in range(6000)]
    page = render(RunView(title="t", description="", steps=steps))
    assert len(page.encode()) < 3_000_000
    shown = page.count('<td class="name">')
    assert f"and {6000 - shown:,} more steps" in page
    assert 0 < page.count("<details>") < shown < 6000


def test_a_part_that_is_too_large_is_left_out_in_a_sentence() -> None:
    found = fitting([("A", "a" * 9_000_000), ("B", "b" * 2_000_000), ("C", "c" * 10)])
    assert [name for name, _ in found] == ["A", "B", "C"]
    assert found[1][1] == '<p class="note">left out: it has 2.0 MB; <code>vlpipe ui</code> shows it</p>'
    assert found[2][1] == "c" * 10
