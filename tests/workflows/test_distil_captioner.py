"""A teacher behind a server of the step, and its student, on a small world: who captions what, and what is learned."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from vlpipe.pipeline.cli import commands  # noqa: F401  # defines the commands
from vlpipe.pipeline.cli.app import app

WORKFLOW = str(Path(__file__).parents[2] / "workflows" / "distil_captioner.yaml")
SMALL = {"vision_width": 32, "vision_layers": 1, "vision_heads": 2, "text_width": 32, "text_heads": 2}


@pytest.mark.slow
def test_the_student_learns_the_teachers_captions_and_captions_the_rest(tmp_path: Path) -> None:
    root = tmp_path / "root"
    command = ["{python}", "-m", "vlpipe.stages.chat_server", "--port", "{port}", "--world", str(root)]
    sets = {
        "world.num_web": 120,
        "teacher.server.command": json.dumps(command),
        "student.steps": 4,
        "student.batch_size": 16,
        "student.warmup_steps": 1,
        "student.resources.cpus": 1,
        "student.torch_threads": 1,
        **{f"student.model.{name}": value for name, value in SMALL.items()},
    }
    options = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    done = CliRunner().invoke(app, ["run", WORKFLOW, "--root", str(root), "--local", *options])
    assert done.exit_code == 0, done.output

    def rows(step: str) -> list[dict[str, object]]:
        (folder,) = root.glob(f"{step}-*")
        return [row for path in sorted(folder.glob("0*.parquet")) for row in pq.read_table(path).to_pylist()]

    def synth(row: dict[str, object]) -> list[dict[str, object]]:
        return [one for one in row["texts"] if one["source"] == "synth"]  # type: ignore[attr-defined]

    lessons, captions, blind = rows("lessons"), rows("captions"), rows("blind_captions")
    assert lessons
    assert captions
    told = {row["id"]: row["prompt"] for row in rows("told")}
    assert {row["id"] for row in lessons} | {row["id"] for row in captions} == set(told)
    assert not {row["id"] for row in lessons} & {row["id"] for row in captions}
    for row in lessons:  # the teacher's captions alone are learned
        assert all((one["kept"] is not False) == (one["source"] == "synth") for one in row["texts"])  # type: ignore[attr-defined]
        assert [one["model"] for one in synth(row)] == ["demo"]
        web = next(one["text"] for one in row["texts"] if one["source"] == "web")  # type: ignore[attr-defined]
        assert row["prompt"] == f"{web} = "
    assert [len(synth(row)) for row in captions] == [1] * len(captions)
    one, other = ({one["model"] for row in found for one in synth(row)} for found in (captions, blind))
    assert len(one) == len(other) == 1
    assert one != other
