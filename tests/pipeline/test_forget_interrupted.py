"""Interrupted, locked and odd: a forget is finished to the same bytes, and what is wrong with a list is named."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import vlpipe
from forget_roots import Forgets, done, rows, runs, shards, traces  # noqa: F401
from forget_toys import row_id, url

from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.records.forgotten import hashed
from vlpipe.pipeline.storage.store import Store

HERE = Path(__file__).parent
NOTHING = "forgets: all 7 steps are done, nothing to do"


@pytest.mark.parametrize(
    "verb", ["status", "report", "prune", ("why", row_id(3)), ("export", "pages", "out")]
)
def test_nothing_reads_or_removes_between_the_beginning_and_the_end_of_a_forget(
    runs: Forgets, verb: str | tuple[str, ...]
) -> None:
    (runs.root / "_forget.json").write_text("{}")
    os.chdir(runs.folder)
    said = runs(*((verb,) if isinstance(verb, str) else verb), code=1)
    assert said == [f"`vlpipe forget` was interrupted in {runs.root}; `vlpipe run` completes it"]


def test_artifacts_of_a_step_killed_before_its_manifest_go(runs: Forgets) -> None:
    (runs.step("twins") / "manifest.json").unlink()
    runs.forget(f"id:{row_id(2)}")
    assert traces(runs.root, row_id(2)) == []
    runs("run", "--local", "--until", "unique")
    for step in ("pages", "twins", "unique"):  # what is below is out of date now
        assert vlpipe("verify", runs.step(step))[-1].endswith("all match their records")


def test_what_a_forget_that_had_no_plan_yet_left_goes_with_the_next_run(runs: Forgets) -> None:
    (runs.root / "_forget").mkdir()
    (runs.root / "_forget" / "pages-01234567.parquet").write_bytes(b"")
    assert vlpipe("verify", runs.root)[-1].endswith("all match their records")
    assert runs("run", "--local")[0].startswith(NOTHING)
    assert not (runs.root / "_forget").exists()


def test_forgetting_waits_for_no_run(runs: Forgets) -> None:
    with locked(Store(str(runs.root))):
        entries = runs.folder / "entries.txt"
        entries.write_text("domain:host2.test")
        assert "is in use by another run" in runs("forget", entries, "--yes", code=1)[-1]


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    runs = Forgets(tmp_path)
    root = f"memory://forget{tmp_path.name}"
    vlpipe("run", runs.file, "--local", "--root", root, "--until", "unique")
    entries = tmp_path / "entries.txt"
    entries.write_text(f"id:{row_id(2)}\nurl:{url(4)}\n")
    vlpipe("forget", runs.file, entries, "--yes", "--root", root)
    assert vlpipe("verify", root)[-1].endswith("all match their records")
    store = Store(root)
    store.fs.get(store.path("") + "/", f"{tmp_path}/copy/", recursive=True)
    assert len(list((tmp_path / "copy").rglob("*.parquet"))) > 20
    assert traces(tmp_path / "copy", row_id(2), url(4)) == []
    assert vlpipe("run", runs.file, "--local", "--root", root, "--until", "unique")[0].startswith(
        "forgets: all 4 steps are done, nothing to do"
    )
    assert not store.exists("_forget.json")


@pytest.mark.slow
def test_a_forget_killed_at_enumerated_points_is_finished_to_the_same_bytes(tmp_path: Path) -> None:
    """Every 61st point; `python tests/pipeline/forget_kill_points.py FOLDER 1` takes them all."""
    command = [sys.executable, "forget_kill_points.py", str(tmp_path), "61"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) >= 3


def test_only_hashes_are_kept(runs: Forgets) -> None:
    runs.forget(f"id:{row_id(2)}", "domain:host7.test", "id:unknown")
    kept = pq.read_table(runs.root / "forgotten.parquet").to_pylist()
    assert {"kind": "id", "hash": hashed("id", "unknown")} in kept
    assert {r["kind"] for r in kept} == {"id", "url", "domain"}
    assert all(len(r["hash"]) == 64 for r in kept)
    assert runs("why", row_id(2), code=1) == [f"row {row_id(2)} was forgotten; only its hashes are kept"]
    assert runs("why", url(7), code=1) == [f"row {url(7)} was forgotten; only its hashes are kept"]


TXT = "# asked for on Monday\n\nid:a\n{}\n"
BAD: list[tuple[str, str, str]] = [
    (
        "x.txt",
        TXT.format("0123abcd"),
        "x.txt line 4: wanted a line that begins with id: or url: or domain: or sha256:, got '0123abcd'",
    ),
    (
        "x.txt",
        TXT.format("url:x.jpg"),
        "x.txt line 4: wanted a url that begins with http:// or https://, got 'x.jpg'",
    ),
    (
        "x.txt",
        TXT.format("domain:http://x"),
        "x.txt line 4: wanted a domain like example.org, got 'http://x'",
    ),
    ("x.txt", TXT.format("sha256:0123"), "x.txt line 4: wanted 64 hexadecimal digits, got '0123'"),
    ("x.txt", "# nothing\n", "x.txt is empty: there is nothing to forget"),
    (
        "x.csv",
        "name,size\na,1\n",
        "x.csv has none of the columns id, url, domain, sha256; its columns are ['name', 'size']",
    ),
    ("x.csv", "id,url\na\n", "x.csv line 2 has 1 field(s), but the header has 2"),
    ("x.json", "[]", "x.json: wanted a file whose name ends in .txt, .csv, .parquet"),
]


@pytest.mark.parametrize(("name", "text", "error"), BAD)
def test_what_is_wrong_with_a_list_is_said_with_its_line(
    tmp_path: Path, name: str, text: str, error: str
) -> None:
    runs = Forgets(tmp_path)
    (tmp_path / name).write_text(text)
    os.chdir(tmp_path)
    assert runs("forget", name, code=1) == [error]


def as_csv(path: Path) -> None:
    path.with_suffix(".csv").write_text(f"id,url,note\n{row_id(2)},,x\n,{url(6)},y\n")


def as_parquet(path: Path) -> None:
    pq.write_table(pa.table({"url": [url(6), None], "id": [None, row_id(2)]}), path.with_suffix(".parquet"))


@pytest.mark.parametrize(("write", "suffix"), [(as_csv, ".csv"), (as_parquet, ".parquet")])
def test_lists_come_in_csv_and_parquet(runs: Forgets, write: Callable[[Path], None], suffix: str) -> None:
    path = runs.folder / "entries"
    write(path)
    runs("forget", path.with_suffix(suffix), "--yes")
    assert traces(runs.root, row_id(2), url(6)) == []
