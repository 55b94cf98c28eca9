"""What is forgotten leaves no trace in the root, nothing has to run again for it, and it does not come back."""

import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs, vlpipe
from forget_roots import Forgets, done, rows, runs, shards, traces  # noqa: F401
from forget_toys import EXPORT, content, row_id, url, words
from helpers import left

from vlpipe.pipeline.engine.records.receipts import Receipt, read_receipts
from vlpipe.pipeline.inspect.roots import state
from vlpipe.pipeline.storage.store import Store

HERE = Path(__file__).parent
NOTHING = "forgets: all 7 steps are done, nothing to do"


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


def test_who_looks_on_reads_receipts_again_if_they_were_rewritten_and_only_then(
    runs: Forgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(store: Store, folder: str) -> list[Receipt]:
        read.append(folder)
        return read_receipts(store, folder)

    monkeypatch.setattr(state, "FRESH_S", -1.0)
    monkeypatch.setattr(state, "read_receipts", counted)
    reader = state.RootReader(Store(str(runs.root)))

    def forgotten() -> dict[str, int]:
        return {step.name: sum(r.forgotten for r in step.receipts) for step in reader.state().steps}

    assert set(forgotten().values()) == {0}
    first = len(read)
    assert set(forgotten().values()) == {0}
    assert len(read) == first
    runs.forget(f"id:{row_id(2)}")
    assert forgotten()["pages"] == 1
    assert len(read) > first


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
