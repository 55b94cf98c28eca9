"""What is forgotten leaves no trace in the root, nothing has to run again for it, and it does not come back."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs, vlpipe
from forget_toys import CHAIN, EXPORT, content, row_id, url, words
from helpers import left

from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.records.forgotten import hashed
from vlpipe.pipeline.engine.records.receipts import read_receipts
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.storage.store import Store

HERE = Path(__file__).parent
NOTHING = "forgets: all 7 steps are done, nothing to do"


class Forgets(Runs):
    """20 pages; `list` is the file that says how many."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.list = folder / "num.txt"
        self.list.write_text("20")
        super().__init__(folder, CHAIN.replace("LIST", str(self.list)))

    def forget(self, *lines: str, yes: bool = True) -> list[str]:
        entries = self.folder / "entries.txt"
        entries.write_text("\n".join(lines))
        return self("forget", entries, *(["--yes"] if yes else []))


def traces(root: Path, *needles: str) -> list[str]:
    """Files below the root that hold one of these texts, in a Parquet cell or anywhere else."""
    found = []
    for path in (p for p in root.rglob("*") if p.is_file()):
        text = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
        found += [f"{path.relative_to(root)}: {n}" for n in needles if n in text]
    return found


def rows(step: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(step.glob("0*.parquet")) for row in pq.read_table(path).to_pylist()]


def shards(root: Path) -> dict[str, tuple[Shard, str, str]]:
    """Key, digest and rows of every shard."""
    store = Store(str(root))
    steps = [p.name for p in root.iterdir() if (p / "manifest.json").exists()]
    return {
        r.shard.path: (r.shard, r.input_digest, r.artifacts_digest)
        for s in steps
        for r in read_receipts(store, s)
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = Forgets(tmp_path_factory.mktemp("done"))
    runs("run", "--local")
    return runs.root


@pytest.fixture
def runs(tmp_path: Path, done: Path) -> Forgets:
    """A root in which all is done."""
    runs = Forgets(tmp_path)
    shutil.copytree(done, runs.root)
    return runs


def test_nothing_is_touched_without_yes(runs: Forgets) -> None:
    before = left(runs.root)
    said = [line.split(maxsplit=1) for line in runs.forget(f"id:{row_id(2)}", f"url:{url(4)}", yes=False)]
    assert [(name.partition("-")[0], rest.replace("(s)", "")) for name, rest in said[:4]] == [
        ("pages.rows", "2 row"),
        ("pages", "1 row, 1 reject, 2 line of its log"),
        ("twins", "1 row, 2 artifact"),
        ("unique", "1 row, 1 line of its log"),
    ]
    assert left(runs.root) == before


@pytest.mark.slow
def test_no_trace_is_left_and_nothing_has_to_run(runs: Forgets) -> None:
    """By id (a witness of another), url (dead), domain (a twin) and content: no file of the root names them."""
    said = runs.forget(
        f"id:{row_id(2)}",
        "url: HTTPS://WWW.Host4.test:443/4.jpg#x",
        "domain:host7.test",
        f"sha256:{content(10)}",
    )
    assert any(line.startswith("forgot 4 row(s) in 6 folder(s) of ") for line in said)
    gone = [2, 4, 7, 10]
    needles = [f(n) for n in gone for f in (row_id, url, words)]
    assert traces(runs.root, *needles, "image of " + row_id(2)) == []
    assert runs("run", "--local")[0].startswith(NOTHING)
    assert vlpipe("verify", runs.root)[-1].endswith("all match their records")
    assert runs.forget(f"id:{row_id(2)}")[-1].startswith("forgot 0 row(s)")


def test_names_of_input_files_go_from_the_cache(runs: Forgets) -> None:
    cache = runs.root / "_cache" / "digests.json"
    os.utime(runs.list, (1e9, 1e9))  # the digest of a file that was just written is not kept
    runs("plan")
    assert str(runs.list) in cache.read_text()
    runs.forget(f"id:{row_id(2)}", yes=False)
    assert cache.exists()
    runs.forget(f"id:{row_id(2)}")
    assert not cache.exists()
    assert runs("run", "--local")[0].startswith(NOTHING)


def test_a_twin_of_a_forgotten_row_stays_what_it_was(runs: Forgets) -> None:
    runs.forget(f"id:{row_id(2)}")
    said = runs("why", row_id(3))
    assert "unique      dropped, filtered: twin (duplicate of a forgotten row, similarity 0.9)" in said
    edges = pq.read_table(runs.step("twins") / "artifacts" / "edges.parquet")
    assert row_id(2) not in edges["a"].to_pylist()


def test_a_text_goes_with_the_row_it_was_taken_from(runs: Forgets) -> None:
    """Out of decisions, rows, a list beside them and the log; what the row had itself stays, and so do its neighbours."""
    before = {row["id"]: row for row in rows(runs.step("scored"))}
    assert [e["text"] for e in before[row_id(6)]["texts"]] == [words(6), words(7)]
    said = runs.forget("domain:host7.test", f"id:{row_id(17)}")
    assert traces(runs.root, words(7), words(17), row_id(7), row_id(17)) == []
    assert any("2 row(s) that lose a text copied from them" in line for line in said)
    model = next(
        line for line in said if line.startswith(f"  {runs.step('model').name} ") and "other" in line
    )
    assert model.endswith("  texts that 2 other row(s) copied from them")
    after = {row["id"]: row for row in rows(runs.step("scored"))}
    gone = {"text": "", "kept": False, "why": "forgotten"}
    for n in (6, 16):
        old = before.pop(row_id(n))
        new = {"texts": [old["texts"][0], gone], "before": [words(n), ""], "donors": [None, []]}
        assert after.pop(row_id(n)) == old | new
    assert after == before
    seen = json.loads((runs.step("model") / "artifacts" / "seen.json").read_text())
    assert {r["id"]: r["before"] for r in seen["rows"]}[row_id(6)] == [words(6)]
    assert json.loads((runs.step("model") / "manifest.json").read_text())["forgotten"] == 2


@pytest.mark.slow
def test_an_export_goes_and_is_made_again(tmp_path: Path) -> None:
    """Where it held a row or a text of one; else it stays."""
    runs = Forgets(tmp_path)
    runs.file.write_text(runs.file.read_text() + EXPORT)
    runs("run", "--local")
    for n in (4, 7, 2):
        needles = (row_id(n), url(n), words(n))
        said = runs.forget(f"id:{row_id(n)}")
        (packed,) = [line.endswith("the next run rebuilds it") for line in said if "packed-" in line] or [
            False
        ]
        assert packed == (n != 4), "it is dead: no step but the first knows it"
        assert bool(list(runs.root.glob("packed-*"))) != packed
        assert any("rebuilds the exports without the rows" in line for line in said) == packed
        assert traces(runs.root, *needles) == []
        runs("run", "--local")
        assert traces(runs.root, *needles) == []
        assert runs("run", "--local")[0].startswith("forgets: all 8 steps are done, nothing to do")
        assert vlpipe("verify", runs.root)[-1].endswith("all match their records")


def test_rows_in_are_rows_out_and_rejects(runs: Forgets) -> None:
    runs.forget(*(f"id:{row_id(n)}" for n in (0, 3, 4, 9, 19)))
    for step in ("pages", "unique", "scored"):
        for path in sorted((runs.step(step) / "_receipts").iterdir()):
            receipt = json.loads(path.read_text())
            assert receipt["rows_in"] == receipt["shard"]["num_rows"] + sum(receipt["rejects"].values())
    assert json.loads((runs.step("pages") / "_receipts" / "000000.json").read_text())["forgotten"] == 2
    assert json.loads((runs.step("twins") / "_receipts" / "000000.json").read_text())["rows_in"] == 14


@pytest.mark.slow
def test_models_are_named_and_can_be_trained_again(runs: Forgets) -> None:
    said = runs.forget(f"id:{row_id(2)}", f"id:{row_id(8)}")
    at = said.index("these were made from the rows and are kept unchanged:")
    model, tuned = runs.step("model"), runs.step("tuned")
    assert said[at + 1].split()[0] == model.name
    assert said[at + 1].endswith("  2 of the rows")
    assert said[at + 2].endswith(f"  made from {model.name}")
    assert (tuned / "artifacts" / "weights.txt").read_text() == "trained on 10, tuned"
    assert json.loads((model / "manifest.json").read_text())["forgotten"] == 2
    assert json.loads((tuned / "manifest.json").read_text())["forgotten"] == 0
    subprocess.run(["rm", "-r", model], check=True)
    runs("run", "--local")
    assert (runs.step("tuned") / "artifacts" / "weights.txt").read_text() == "trained on 8, tuned"


def test_what_lies_there_is_what_a_run_that_knew_would_have_left(tmp_path: Path, runs: Forgets) -> None:
    """Forgetting after a run, and running with `forgotten.parquet` in place: the same keys, digests and rows."""
    gone = (5, 6, 7, 15)  # of twins both, so no decision changes
    runs.forget(*(f"id:{row_id(n)}" for n in gone))
    knew = Forgets(tmp_path / "knew")
    knew.root.mkdir()
    (knew.root / "forgotten.parquet").write_bytes((runs.root / "forgotten.parquet").read_bytes())
    knew("run", "--local", "--until", "unique")
    found = shards(knew.root)
    assert len(found) == 13
    wanted = shards(runs.root)
    # A gather step's rows are keyed by what they are; those of the forget keep the key they had.
    (twins,) = [path for path in found if path.startswith("twins")]
    assert found.pop(twins)[0].digest == wanted.pop(twins)[0].digest
    assert found == {path: wanted[path] for path in found}
    listed = json.loads((knew.step("pages.rows") / "manifest.json").read_text())
    assert listed["rejects"] == {"filtered:forgotten": 4}
    assert traces(knew.root, *(row_id(n) for n in gone)) == []


@pytest.mark.slow
def test_a_longer_list_brings_nothing_back_and_does_nothing_twice(runs: Forgets, tmp_path: Path) -> None:
    runs.forget(f"id:{row_id(2)}", f"url:{url(20)}")
    runs.list.write_text("24")
    calls = tmp_path / "calls.txt"
    runs("run", "--local", "--set", f"pages.calls={calls}", "--until", "pages")
    worked_on = [int(line) for line in calls.read_text().split()]
    assert worked_on == [18, 19, 21, 22, 23]  # shards 0 to 2 are shared, though row 2 went out of the first
    assert traces(runs.root, row_id(2), url(20)) == []


def test_another_shard_size_brings_nothing_back(runs: Forgets) -> None:
    runs.forget("domain:host2.test")
    runs("run", "--local", "--set", "pages.shard_rows=4")
    assert traces(runs.root, row_id(2), url(2)) == []


def test_a_list_that_a_step_made_forgets_too(tmp_path: Path) -> None:
    steps = {
        "lister": '{use: "forget_toys:Lister"}',
        "pages": '{use: "forget_toys:Listed", list: {from: lister, path: urls.parquet}, shard_rows: 3}',
    }
    runs = Runs(tmp_path, "name: made\nsteps:\n" + "".join(f"  {k}: {v}\n" for k, v in steps.items()))
    runs("run", "--local")
    (tmp_path / "entries.txt").write_text(f"id:{row_id(2)}")
    runs("forget", tmp_path / "entries.txt", "--yes")
    assert traces(runs.root, row_id(2), url(2)) == []
    assert runs("run", "--local")[0].startswith("made: all 3 steps are done, nothing to do")
    assert vlpipe("verify", runs.root)[-1].endswith("all match their records")


@pytest.mark.parametrize("n", [2, 8, 14])
def test_a_url_is_forgotten_with_the_last_of_its_rows(tmp_path: Path, n: int) -> None:
    """Rows 2, 8 and 14 lie in three shards and share a url: whichever goes, the others are listed again."""
    (tmp_path / "num.txt").write_text("18")
    step = f'{{use: "forget_toys:SixUrls", list: {tmp_path / "num.txt"}, shard_rows: 6}}'
    runs = Runs(tmp_path, f"name: shared\nsteps:\n  pages: {step}\n")
    runs("run", "--local")
    entries = tmp_path / "entries.txt"
    for going, kinds in (([n], ["id"]), ([2, 8, 14], ["id", "id", "id", "url"])):
        entries.write_text("\n".join(f"id:{row_id(one)}" for one in going))
        runs("forget", entries, "--yes")
        kept = pq.read_table(runs.root / "forgotten.parquet").to_pylist()
        assert [one["kind"] for one in kept] == kinds


def test_retry_brings_nothing_back(runs: Forgets) -> None:
    runs.forget(f"id:{row_id(4)}")
    assert runs("retry", "pages", "--why", "dead", "--local")[-1].startswith("pages: 3 row(s) in 3 shard(s)")
    assert traces(runs.root, row_id(4)) == []


@pytest.mark.slow
def test_folders_of_other_keys_and_unfinished_ones_forget_too(runs: Forgets) -> None:
    runs("run", "--local", "--set", "pages.shard_rows=4")
    (newest,) = [p for p in runs.root.glob("scored-*") if len(list(p.glob("0*.parquet"))) == 5]
    (newest / "manifest.json").unlink()
    (newest / "000009.parquet").write_bytes((newest / "000000.parquet").read_bytes())  # of a killed attempt
    runs.forget(f"id:{row_id(0)}", f"id:{row_id(18)}")
    assert traces(runs.root, row_id(0), row_id(18)) == []
    assert runs("run", "--local")[0].startswith(NOTHING)
    runs("run", "--local", "--set", "pages.shard_rows=4")
    assert vlpipe("verify", runs.root)[-1].endswith("all match their records")


def test_shards_of_an_unfinished_step_count_on_though_their_artifacts_change(runs: Forgets) -> None:
    """A kill before a forget costs no shard: what it was made from is known without a manifest."""
    unique = runs.step("unique")
    (unique / "manifest.json").unlink()
    runs.forget(f"id:{row_id(4)}", f"id:{row_id(2)}", f"id:{row_id(3)}")
    made = {path: path.stat().st_ino for path in unique.glob("0*.parquet")}
    assert len(made) == 4
    runs("run", "--local")
    assert {path: path.stat().st_ino for path in unique.glob("0*.parquet")} == made
    assert vlpipe("verify", runs.root)[-1].endswith("all match their records")


def test_unfinished_parts_of_a_step_that_read_the_rows_go(runs: Forgets) -> None:
    model, other = runs.step("model"), runs.step("twins")
    for step in (model, other):
        (step / "work" / "0123abcd").mkdir(parents=True)
        (step / "work" / "0123abcd" / "checkpoint").write_text("weights")
    (model / "manifest.json").unlink()
    assert f"  {model.name}" in [
        line.partition("   ")[0].rstrip() for line in runs.forget("domain:host0.test")
    ]
    assert not (model / "work").exists()


@pytest.mark.slow
def test_unfinished_parts_of_a_step_that_read_no_such_row_stay(runs: Forgets) -> None:
    """Row 4 was rejected above it and gave nobody a text, so its checkpoint does not know it."""
    (runs.step("model") / "manifest.json").unlink()
    checkpoint = runs.step("model") / "work" / "0123abcd" / "checkpoint"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("weights")
    runs.forget(f"id:{row_id(4)}")
    assert checkpoint.exists()
    runs.forget(f"id:{row_id(3)}")  # of which row 2 had a text
    assert not checkpoint.exists()


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
