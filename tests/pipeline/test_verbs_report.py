"""What the page is told: rows, reasons and rejects as the receipts have them, also of half a run."""

from pathlib import Path
from types import SimpleNamespace

from cli_helpers import Runs
from helpers import CHAIN, planned, run

from vlpipe.pipeline.inspect.report import step_values
from vlpipe.pipeline.shard import Reject


def views(folder: Path, *, running: bool = False) -> dict[str, SimpleNamespace]:
    steps, store = planned(folder, CHAIN)
    return {v["name"]: SimpleNamespace(**v) for v in step_values(steps, store, running=running)}


def test_a_finished_run(tmp_path: Path) -> None:
    run(tmp_path, CHAIN)
    found = views(tmp_path)
    every = found["every"]
    assert (every.status, every.rows_in, every.rows_out, every.inputs) == ("done", 20, 5, ("scale",))
    assert every.rejects == {"filtered:not_kth": 15}
    assert [r.id for r in every.rejects_sample] == [f"id{n}" for n in range(20) if n % 4]
    assert every.rejects_sample[0] == Reject("id1", "filtered", "not_kth", "")
    assert every.dataset.table()["n"].to_pylist() == [0, 4, 8, 12, 16]
    assert (found["numbers.rows"].rows_in, found["numbers.rows"].rows_out) == (20, 20)


def test_half_a_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local", "--until", "every")
    (runs.step("every") / "manifest.json").unlink()
    (runs.step("every") / "_receipts/000000.json").unlink()
    found = views(tmp_path, running=True)
    assert (found["every"].status, found["every"].rows_in, found["every"].rows_out) == ("running", 14, 3)
    assert (found["sum"].status, found["sum"].dataset, found["sum"].seconds) == ("waiting", None, None)
    assert views(tmp_path)["every"].status == "waiting"


def test_the_page_is_written_where_it_was_asked_for(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    (said,) = runs("report", "--out", tmp_path / "page.html")
    assert said.startswith(f"toy: {tmp_path}/page.html, ")
    assert "not_kth" in (tmp_path / "page.html").read_text()
