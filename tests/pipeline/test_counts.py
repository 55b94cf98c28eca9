"""What a stage counts beside its rejects: summed over batches and shards, in receipts and the manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import Runs, vlpipe
from helpers import run

from vlpipe.pipeline.engine.records.manifest import read_manifest
from vlpipe.pipeline.storage.store import Store

TEXT = """
name: toy
steps:
  numbers: {use: "toys:Numbers", num_rows: 20, shard_rows: 6}
  count: {use: "count_toys:CountOdd", from: numbers, bad: BAD, mend: MEND, max_reject_rate: 0.5}
"""


def toy(bad: str = "[]", mend: str | Path = "none") -> str:
    return TEXT.replace("BAD", bad).replace("MEND", str(mend))


@pytest.mark.parametrize("ray", [False, True], ids=["local", "ray"])
def test_counts_are_summed_over_batches_and_shards(
    tmp_path: Path, ray: bool, request: pytest.FixtureRequest
) -> None:
    """Halving a batch around the rows that break it counts every other row once."""
    address = request.getfixturevalue("two_cpus") if ray else None
    one = run(tmp_path, toy("[3, 8, 9]"), address=address)["count"]
    assert [dict(r.counts) for r in one.receipts] == [
        {"fails:small": 2, "odd": 2},
        {"fails:small": 0, "odd": 2},
        {"fails:small": 0, "odd": 3},
        {"fails:small": 0, "odd": 1},
    ]
    assert one.manifest is not None
    assert dict(one.manifest.counts) == {"fails:small": 2, "odd": 8}


def test_show_and_the_report_have_them(tmp_path: Path) -> None:
    runs = Runs(tmp_path, toy())
    runs("run", "--local")
    assert any(
        line.split()[:5] == ["counts", "fails:small", "2,", "odd", "10"]
        for line in vlpipe("show", runs.step("count"))
    )
    runs("report", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert '<code>fails:small</code></td><td class="num">2</td>' in page


def test_rows_that_come_back_are_counted_once(tmp_path: Path) -> None:
    runs = Runs(tmp_path, toy("[3, 9]", tmp_path / "mend"))
    runs("run", "--local")
    (tmp_path / "mend").touch()
    runs("retry", "count", "--why", "shaky", "--local")
    manifest = read_manifest(Store(str(runs.root)), runs.step("count").name)
    assert manifest is not None
    assert dict(manifest.counts) == {"fails:small": 2, "odd": 10}
    said = runs("retry", "count", "--why", "small", "--local", code=1)
    assert said[-1] == (
        "the rows that step 'count' rejected with code 'small' were filtered by a rule: they did not "
        "fail, so there is nothing to retry"
    )
