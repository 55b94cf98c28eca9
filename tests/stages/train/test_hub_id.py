"""A hub id where there is no network: one clear error and exit 1, whichever stage wants the weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED

STEPS = {
    "captions": '{use: "caption.generate:Caption", from: squares, model: nobody/nothing}',
    "train": '{use: "train.train:Train", from: squares, init: nobody/nothing, objectives: ["lm:Lm"], steps: 1}',
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_hub_id_without_network_is_one_clear_error(
    name: str, make_rows: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    rows = pa.Table.from_pylist(make_rows(), pa.schema([*LISTED, *IMAGE_FIELDS]))
    pq.write_table(rows, tmp_path / "rows.parquet")
    squares = f'{{use: "gated:Rows", file: "{tmp_path}/rows.parquet"}}'
    (tmp_path / "w.yaml").write_text(f"steps:\n  squares: {squares}\n  {name}: {STEPS[name]}\n")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", str(tmp_path / "w.yaml"), "--local"]
    done = subprocess.run(
        [*command, "--root", str(tmp_path / "root")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert said.startswith("error: ")
    assert f"{name}: there is no file or folder 'nobody/nothing'" in said
    assert "as a hub id it has no known commit: HF_HUB_OFFLINE is set" in said
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((tmp_path / "root").glob(f"{name}-*/_rejects"))
