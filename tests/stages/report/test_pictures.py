"""Pictures on the report page: the first of each step, re-encoded, escaped, within a number of bytes."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.pictures.rows import PICTURES, picture
from vlpipe.stages.report import pictures as module
from vlpipe.stages.report.page import render
from vlpipe.stages.report.pictures import NUM_SHOWN, pictures
from vlpipe.stages.report.view import RunView, StepView


def steps(tmp_path: Path, num: int, side: int = 16, title: str = "a ring") -> Dataset:
    rng = np.random.default_rng(0)
    rows = [
        picture(
            f"row{k}",
            [f"row{k}"],
            [
                (name, rng.integers(0, 256, (side, side, 3)).astype(np.uint8))
                for name in ("original", "output")
            ],
            title=title,
            lines=[f"line {k}"],
        )
        for k in range(num)
    ]
    return dataset(tmp_path / "rows", pa.Table.from_pylist(rows, PICTURES), "sheets", shard_rows=5)


def page(data: Dataset) -> RunView:
    return RunView(
        title="run", description="", steps=[StepView(name="sheets", use="x", status="done", dataset=data)]
    )


def embedded(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def test_the_first_of_a_step_are_shown_as_they_are(tmp_path: Path) -> None:
    data = steps(tmp_path, NUM_SHOWN + 3)
    html = pictures(page(data))
    assert len(embedded(html)) == NUM_SHOWN
    assert "and 3 more that are not shown" in html
    assert f"line {NUM_SHOWN - 1}<" in html
    assert f"line {NUM_SHOWN}<" not in html
    assert "original | output" in html
    (table,) = list(data.batches(["id"], ["image"]))[:1]
    wanted = np.asarray(Image.open(io.BytesIO(table["image"][0].as_py())))
    assert np.array_equal(np.asarray(embedded(html)[0]), wanted)
    assert html in render(page(data))


def test_titles_are_escaped_and_wide_pictures_made_smaller(tmp_path: Path) -> None:
    html = pictures(page(steps(tmp_path, 1, side=700, title="<script>alert(1)</script>")))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert embedded(html)[0].size[0] == 640


def test_the_page_has_room_for_some_bytes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = steps(tmp_path, 6)
    monkeypatch.setattr(module, "MAX_BYTES", 8000)
    html = pictures(page(data))
    shown = len(embedded(html))
    assert 0 < shown < 6
    assert len(html) < 8000 + 300
    assert f"and {6 - shown} more that are not shown" in html


def test_a_run_without_pictures_has_no_such_part() -> None:
    assert (
        pictures(RunView(title="run", description="", steps=[StepView(name="a", use="x", status="done")]))
        == ""
    )
