"""The commands that look at a run, mend it and clean up, on a small workflow, as a person would call them."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toys import payload
from typer.testing import CliRunner

from vlpipe.pipeline.cli import commands
from vlpipe.pipeline.cli.app import app

TEXT = """
name: toy
steps:
  numbers: {use: "toys:Numbers", num_rows: 20, shard_rows: 6}
  fetch: {use: "toys:Breaks", from: numbers, bad: [3, 7], typed: true, max_reject_rate: 0.5, mend: MEND}
  every: {use: "toys:Every", from: fetch}
  scale: {use: "toys:Scale", from: every, by: 3}
  sum: {use: "toys:Sum", from: scale}
"""


class Toy:
    """A finished run, and `vlpipe` on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.mend = folder, folder / "root", folder / "mend"
        self.file = folder / "w.yaml"
        self.file.write_text(TEXT.replace("MEND", str(self.mend)))
        self("run", "--local")

    def __call__(self, verb: str, *args: str, code: int = 0) -> str:
        """`vlpipe VERB w.yaml ARGS --root ROOT`; the output in one line."""
        return self.plain(verb, str(self.file), *args, "--root", str(self.root), code=code)

    def plain(self, *args: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(args))
        said = " ".join((done.output + str(done.exception or "")).split())
        assert done.exit_code == code, said
        return said

    def step(self, name: str) -> Path:
        (folder,) = self.root.glob(f"{name}-*")
        return folder


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    assert commands.app is app
    return Toy(tmp_path)


def test_status_counts_rows_and_reasons(toy: Toy) -> None:
    said = toy("status")
    assert "fetch done 4 18 2" in said
    assert "odd 2" in said
    assert "6 of 6 steps are done" in said


def test_show_gives_schema_counts_and_rows_and_says_where_heavy_columns_lie(toy: Toy) -> None:
    said = toy.plain("show", str(toy.step("scale")), "-n", "2")
    assert "5 of 5 rows in, in 4 shard(s)" in said
    assert f"payload heavy, in {toy.step('numbers').name}" in said
    assert "id4 4 12" in said
    assert "id3 fetch fault odd n is 3" in toy.plain("show", str(toy.step("fetch") / "_rejects"))


def test_why_follows_a_row_to_where_it_was_dropped(toy: Toy) -> None:
    assert "fetch dropped, fault: odd (n is 3)" in toy("why", "id3")
    assert "every dropped, filtered: not_kth" in toy("why", "id5")
    kept = toy("why", "id4")
    assert "+ scaled: 12" in kept
    assert "sum read it, from" in kept


def test_retry_runs_again_only_the_rows_rejected_for_a_reason(toy: Toy) -> None:
    untouched = (toy.step("fetch") / "000002.parquet").stat().st_ino
    toy.mend.touch()
    assert "2 row(s) in 2 shard(s) retried, 2 now in the output" in toy(
        "retry", "fetch", "--why", "odd", "--local"
    )
    ns = [n for k in range(4) for n in pq.read_table(toy.step("fetch") / f"{k:06d}.parquet")["n"].to_pylist()]
    assert ns == list(range(20))
    assert (toy.step("fetch") / "000002.parquet").stat().st_ino == untouched
    assert not (toy.step("fetch") / "_rejects/000000.parquet").exists()
    assert "first reason: every: its input changed" in toy("plan")
    assert "every: 4 shard(s), 2 reused" in toy("run", "--local")
    assert "0 of 6 steps would run" in toy("plan")


def test_diff_names_parameters_and_rows(toy: Toy) -> None:
    toy("run", "--local", "--set", "scale.by=4")
    a, b = sorted(toy.root.glob("scale-*"))
    said = toy.plain("diff", str(a), str(b))
    assert "4 row(s) that both have differ: scaled in 4" in said
    assert "parameter by" in said


def test_prune_removes_what_no_workflow_reaches_and_only_when_told(toy: Toy) -> None:
    toy("run", "--local", "--set", "scale.by=4")
    assert "would remove 2 folder(s)" in toy("prune")
    assert len(list(toy.root.glob("scale-*"))) == 2
    assert "removed 2 folder(s)" in toy("prune", "--yes")
    assert "0 of 6 steps would run" in toy("plan")
    assert "nothing to remove" in toy("prune")


def test_export_joins_the_heavy_columns(toy: Toy) -> None:
    out = toy.folder / "out"
    toy.plain("export", str(toy.file), "scale", str(out), "--root", str(toy.root))
    rows = [row for file in sorted(out.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert [r["payload"] for r in rows] == [payload(n, 10) for n in (0, 4, 8, 12, 16)]


def test_verify_finds_one_changed_byte(toy: Toy) -> None:
    assert "all match their records" in toy.plain("verify", str(toy.root))
    shard = toy.step("every") / "000001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    said = toy.plain("verify", str(toy.root), code=1)
    assert f"damaged {shard}" in said
    assert "1 error(s)" in said


def test_report_is_one_page(toy: Toy) -> None:
    page = toy.folder / "report.html"
    toy.plain("report", str(toy.file), "--root", str(toy.root), "--out", str(page))
    text = page.read_text()
    assert "not_kth" in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_plan_of_an_unknown_step_says_what_there_is(toy: Toy) -> None:
    assert "has no step 'scal'; did you mean 'scale'?" in toy("run", "--local", "--until", "scal", code=1)
