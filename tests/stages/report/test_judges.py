from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import scored
from vlpipe.stages.judging.column import SCORES
from vlpipe.stages.report.judges import judges
from vlpipe.stages.report.page import RunView, StepView, render

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("texts", TEXTS),
        scored("clip", SCORES, "<b>clip</b>"),
        scored("vqa", SCORES, "qwen"),
        pa.field("other", SCORES),
    ]
)


def run_of(folder: Path, num_rows: int = 101) -> RunView:
    texts = [[text("w", "web", kept=i >= 25), text("s", "synth")] for i in range(num_rows)]
    scores = [[[i / 100, None] for i in range(num_rows)], [[0.5, 0.25]] * num_rows, [[1.0, 1.0]] * num_rows]
    table = pa.table([[f"r{i}" for i in range(num_rows)], texts, *scores], schema=SCHEMA)
    data = dataset(folder, table, shard_rows=30)
    step = StepView(
        name="judged", use="x:X", status="done", rows_in=num_rows, rows_out=num_rows, dataset=data
    )
    plain = dataset(folder / "plain", table.select(["id", "texts"]))
    return RunView(
        title="t",
        description="",
        steps=[step, StepView(name="last", use="x:X", status="done", dataset=plain)],
    )


def test_each_judge_has_a_line_per_source_with_its_quantiles(tmp_path: Path) -> None:
    page = judges(run_of(tmp_path))
    lines = [re.sub(r"<[^>]+>", " ", line).split() for line in re.findall(r"<tr>(<td>.*?)</tr>", page)]
    assert lines == [
        ["clip", "web", "&lt;b&gt;clip&lt;/b&gt;", "101", "75.2", "%", "0.05", "0.3", "0.5", "0.7", "0.95"],
        ["vqa", "web", "qwen", "101", "75.2", "%", *["0.5"] * 5],
        ["vqa", "synth", "qwen", "101", "100.0", "%", *["0.25"] * 5],
    ]
    assert "<h2>Judges</h2>" in render(run_of(tmp_path / "again"))
    assert judges(RunView(title="t", description="", steps=[])) == ""
