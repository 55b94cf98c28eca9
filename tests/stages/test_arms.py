"""A workflow with arms, run to its end without a model: names of steps become arms, and `vlpipe forget` finds each copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from arms_toys import row_id
from typer.testing import CliRunner

from vlpipe.pipeline.cli import commands
from vlpipe.pipeline.errors import WorkflowError
from vlpipe.pipeline.workflow.load import Workflow

WORKFLOW = """
name: arms
steps:
  filtered: {use: "arms_toys:Judged", num_rows: 30, shard_rows: 8}
  cut: {use: "filter.at_random:RandomCut", from: filtered}
  random: {use: "filter.at_random:RandomFilter", from: filtered, cut: {from: cut, path: cut.json}}
  drawn: {use: "caption.shuffle:DrawShuffle", from: filtered}
  shuffled: {use: "caption.shuffle:ShuffleSynthetic", from: filtered, shuffled: {from: drawn, path: shuffled.parquet}}
  none: {use: "arms_toys:Evaluated", from: random, rate: 0.3}
  cf: {use: "arms_toys:Evaluated", from: shuffled, rate: 0.6}
  compared:
    use: "evaluate.compare:Compare"
    from: [none, cf]
    arms: {none: [none], C+F: [cf]}
    baseline: none
"""


class Done:
    def __init__(self, folder: Path) -> None:
        self.root, self.file = folder / "root", folder / "w.yaml"
        self.file.write_text(WORKFLOW)

    def copied(self, folder: Path) -> Done:
        shutil.copytree(self.root, folder / "root")
        return Done(folder)

    def __call__(self, verb: str, *args: str | Path) -> list[str]:
        given = [str(part) for part in (verb, self.file, *args, "--root", self.root)]
        done = CliRunner().invoke(commands.app, given)
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output.splitlines()

    def rows(self, name: str) -> list[dict[str, Any]]:
        (step,) = self.root.glob(f"{name}-*")
        return [row for path in sorted(step.glob("0*.parquet")) for row in pq.read_table(path).to_pylist()]

    def holding(self, needle: str) -> set[str]:
        """Steps with a file that holds it, in any cell or byte."""
        found = set()
        for path in (p for p in self.root.rglob("*") if p.is_file()):
            parquet = path.suffix == ".parquet"
            said = str(pq.read_table(path).to_pylist()).encode() if parquet else path.read_bytes()
            if needle.encode() in said:
                found.add(path.relative_to(self.root).parts[0].partition("-")[0])
        return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    done = Done(tmp_path_factory.mktemp("arms"))
    done("run", "--local")
    return done


def kept(rows: list[dict[str, Any]], source: str) -> int:
    texts = pa.array([t for row in rows for t in row["texts"] if t["source"] == source])
    return int(pc.sum(pc.struct_field(texts, "kept")).as_py())


def test_steps_run_and_find_each_others_artifacts(done: Done) -> None:
    assert [kept(done.rows("random"), source) for source in ("web", "synth")] == [10, 24]
    assert {t["why"] for row in done.rows("random") for t in row["texts"]} == {None, "at_random"}
    texts = [row["texts"] for row in done.rows("shuffled")]
    assert sorted(ts[1]["text"] for ts in texts) == sorted(f"synth words of {n}" for n in range(30))
    assert not [n for n, ts in enumerate(texts) if ts[1]["text"] == f"synth words of {n}"]
    found = {row["name"]: row["value"] for row in done.rows("compared")}
    assert list(found)[-3:] == [f"C+F - none/tr@1 {kind}" for kind in ("mean", "low", "high")]
    assert found["C+F - none/tr@1 low"] < found["C+F - none/tr@1 mean"] < found["C+F - none/tr@1 high"]


def test_a_forgotten_row_leaves_every_arm(done: Done, tmp_path: Path) -> None:
    done = done.copied(tmp_path)
    (giver,) = [n for n in range(30) if done.rows("shuffled")[7]["texts"][1]["text"] == f"synth words of {n}"]
    assert done.holding(row_id(giver)) >= {"filtered", "random", "drawn", "shuffled", "none", "cf"}
    assert done.holding(f"synth words of {giver}") >= {"filtered", "random", "drawn", "shuffled"}
    entries = done.root.parent / "entries.txt"
    entries.write_text(f"id:{row_id(giver)}")
    done("forget", entries, "--yes")
    assert done.holding(row_id(giver)) == set()
    assert done.holding(f"synth words of {giver}") == set()
    heir = next(row for row in done.rows("shuffled") if row["id"] == row_id(7))
    assert (heir["texts"][1]["text"], heir["texts"][1]["why"]) == ("", "forgotten")
    assert done("run", "--local")[0].startswith("arms: all 9 steps are done, nothing to do")
    checked = CliRunner().invoke(commands.app, ["verify", str(done.root)])
    assert checked.output.splitlines()[-1].endswith("all match their records")


def test_the_plan_says_what_an_arm_lacks(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    text = WORKFLOW.replace("arms: {none: [none], C+F: [cf]}", "arm_label: 0")
    file.write_text(text)
    with pytest.raises(
        WorkflowError, match="compared: arm_label: 0 is not the number of a label of input 'none'"
    ):
        Workflow.load(str(file))
    file.write_text(
        WORKFLOW.replace(
            'cf: {use: "arms_toys:Evaluated", from: shuffled, rate: 0.6}', 'cf: {use: "arms_toys:Figures"}'
        )
    )
    with pytest.raises(
        WorkflowError, match=r"compared: cf \(Figures\) writes no items.parquet, which intervals need"
    ):
        Workflow.load(str(file))
    file.write_text(text.replace("from: [none, cf]", "from: [none, fc]"))
    with pytest.raises(WorkflowError) as error:
        Workflow.load(str(file))
    assert len(error.value.problems) == 1  # the names are not judged while one of them is unknown
