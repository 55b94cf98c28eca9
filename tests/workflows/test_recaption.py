"""The recaption workflow on a small world: what a server with faults says, is judged, kept and packed."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from vlpipe.pipeline.cli import commands  # noqa: F401  # defines the commands
from vlpipe.pipeline.cli.app import app
from vlpipe.stages.chat_server.server import Running
from vlpipe.stages.chat_server.settings import Settings
from vlpipe.stages.chat_server.world_captions import WorldCaptions

WORKFLOW = str(Path(__file__).parents[2] / "workflows" / "recaption.yaml")
FAULTS = {"500": 0.05, "cut": 0.05, "refusal": 0.1, "length": 0.1, "control": 0.05}


@pytest.mark.slow
def test_captions_are_asked_judged_kept_and_packed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Running(Settings(latency_s=0.005, faults=FAULTS), WorldCaptions(str(root), 0.2)) as server:
        sets = [
            "world.num_web=80",
            "world.num_human=4",
            "world.num_eval=4",
            f"captions.base_url={server.url}",
        ]
        options = [one for value in sets for one in ("--set", value)]
        done = CliRunner().invoke(app, ["run", WORKFLOW, "--root", str(root), "--local", *options])
        assert done.exit_code == 0, done.output
        again = CliRunner().invoke(app, ["run", WORKFLOW, "--root", str(root), "--local", *options])
        assert "nothing to do" in again.output
        num_asked = len(server.server.asked)
    (path,) = root.glob("judged-*/000000.parquet")
    rows = pq.read_table(path).to_pylist()
    assert num_asked == 2 * len(rows)
    synth = [one for row in rows for one in row["texts"] if one["source"] == "synth"]
    assert Counter(one["model"] for one in synth) == {"demo/picture": len(rows), "demo/with_text": len(rows)}
    whys = Counter(one["why"] for one in synth)
    assert set(whys) == {None, "wrong", "refusal", "truncated"}
    assert whys[None] > len(synth) / 2
    (tar,) = root.glob("tars-*/artifacts/*.tar")
    with tarfile.open(tar) as file:
        entries = [json.load(file.extractfile(one)) for one in file if one.name.endswith(".json")]  # type: ignore[arg-type]
    kept = [row for row in rows if any(one["kept"] is not False for one in row["texts"])]
    assert len(entries) == len(kept)
    assert all(one["kept"] is not False for entry in entries for one in entry["texts"])
