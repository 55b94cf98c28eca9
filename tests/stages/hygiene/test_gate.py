from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.pipeline.helpers import planned, rows, run
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import scored
from vlpipe.stages.hygiene.gate import CaptionGate, FixedSample

SCHEMA = pa.schema([("id", pa.string()), ("texts", TEXTS), scored("a", pa.list_(pa.float32()), "judge a")])
WORKFLOW = """
name: toy
steps:
  texts: {{use: "judge_toys:Texts", num_rows: 40, shard_rows: 10}}
  few: {{use: "hygiene.gate:FixedSample", from: texts, fraction: 0.25}}
  tried: {{use: "judge_toys:Captioner", from: few, quality: {quality}, calls: "{calls}"}}
  judged: {{use: "judge_toys:Judge", from: tried, column: a, times: {times}, calls: "{calls}.judge"}}
  gate: {{use: "hygiene.gate:CaptionGate", from: judged, column: a, encoder: judge {times}, max_drop: {max_drop}}}
  full: {{same_as: tried, from: texts, gate: {{from: gate, path: passed.json}}}}
"""


def test_a_worse_captioner_is_stopped_before_it_sees_all_rows(tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    def went(**changes: Any) -> list[str]:
        """The calls of the captioner in a run."""
        calls.write_text("")
        run(
            tmp_path,
            WORKFLOW.format(**{"quality": 8, "calls": calls, "times": 0.1, "max_drop": 0.05, **changes}),
        )
        return [line.split()[0] for line in calls.read_text().splitlines()]

    first = went()
    assert first.index("full") == first.count("sample") > 0
    assert first.count("full") == 4
    assert went() == []
    with pytest.raises(VlpipeError, match=r"score .* -> .*max_drop 5\.0%"):
        went(quality=1)
    assert set(calls.read_text().split()[::2]) == {"sample"}
    again = went(quality=1, max_drop=1)  # as good as this is wanted now
    assert set(again) == {"full"}
    assert set(went(quality=1.01)) == {"sample", "full"}  # compared with the last run, not with the first
    assert went(quality=1.01, times=0.2) == []  # another judge: judged anew, nothing captioned


def test_the_step_behind_a_gate_does_not_have_it_in_its_key(tmp_path: Path) -> None:
    given = {"quality": 8, "calls": tmp_path / "calls", "times": 0.1, "max_drop": 0.05}
    steps = run(tmp_path, WORKFLOW.format(**given))
    assert rows(tmp_path, steps["gate"])["name"].to_pylist() == ["gate_score/a", "gate_usable"]
    todo, _ = planned(tmp_path, WORKFLOW.format(**{**given, "max_drop": 0.1}))
    assert [one.name for one in todo if not one.is_done] in (["gate"], ["gate", "full"])
    assert next(one for one in todo if one.name == "full").folder == steps["full"].folder


def judged(scores: list[float | None], kept: bool | None = None) -> pa.Table:
    texts = [[text("w", "web"), text("s", "synth", kept=kept)] for _ in scores]
    return pa.table([[f"r{i}" for i in range(len(scores))], texts, [[9.0, s] for s in scores]], schema=SCHEMA)


def gate(folder: Path, table: pa.Table, **more: Any) -> dict[str, Any]:
    stage = CaptionGate(column="a", encoder="judge a", **more)
    run_gather(stage, [dataset(folder / "in", table)], folder)
    found: dict[str, Any] = json.loads((folder / "artifacts/gate.json").read_text())
    return found


def test_figures_are_of_kept_and_scored_captions_and_compare_with_a_baseline(tmp_path: Path) -> None:
    first = gate(tmp_path / "one", judged([0.5, 0.7, None, 0.9]))
    assert first["score"] == pytest.approx(0.7)
    assert (first["usable"], first["num_texts"]) == (0.75, 4)
    baseline = File(path=str(tmp_path / "one/artifacts/gate.json"))
    gate(tmp_path / "two", judged([0.5, 0.7, None, 0.8]), baseline=baseline)
    for name, scores in {"score": [0.5, 0.5, None, 0.5], "usable": [0.7, None, None, 0.9]}.items():
        with pytest.raises(VlpipeError, match=f"the captions got worse: {name}"):
            gate(tmp_path / name, judged(scores), baseline=baseline)  # type: ignore[arg-type]
    gate(tmp_path / "others", judged([0.1] * 3), baseline=baseline)  # other rows: nothing to compare with
    with pytest.raises(VlpipeError, match=r"score 0\.1 is below min_score 0\.3"):
        gate(tmp_path / "low", judged([0.1] * 3), min_score=0.3)
    with pytest.raises(VlpipeError, match=r"usable 0\.3333 is below min_usable 0\.5"):
        gate(tmp_path / "few", judged([0.1, None, None]), min_usable=0.5)
    with pytest.raises(VlpipeError, match="none of 2 captions of synth is kept and has a score"):
        gate(tmp_path / "none", judged([0.1, 0.2], kept=False))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(VlpipeError, match=r"is not a gate\.json"):
        gate(tmp_path / "bad", judged([0.1]), baseline=File(path=str(tmp_path / "bad.json")))
    with pytest.raises(SchemaError, match="is for scores of judge b"):
        CaptionGate(column="a", encoder="judge b").schema(SCHEMA)


def test_a_sample_stays_the_same_while_a_list_grows() -> None:
    table = judged([0.5] * 400)
    stage = FixedSample(fraction=0.3)
    out = run_map(stage, table)
    assert 85 < out.table.num_rows < 155  # four standard deviations
    assert {r.why for r in out.rejects} == {"not_in_sample"}
    few = run_map(stage, table.slice(0, 100)).table["id"].to_pylist()
    assert few == [one for one in out.table["id"].to_pylist() if int(one[1:]) < 100]
    rest = run_map(FixedSample(fraction=0.3, rest=True), table)
    assert rest.table["id"].to_pylist() == [r.id for r in out.rejects]
    assert {r.why for r in rest.rejects} == {"in_sample"}
