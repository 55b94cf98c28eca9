"""What is removed and what never is; what is exported opens elsewhere."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs, vlpipe
from helpers import CHAIN, left
from look_at import PAGES, picture
from toys import payload

from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.records.receipts import read_receipt, receipt_numbers, write_receipt
from vlpipe.pipeline.parquet.image_files import as_read, as_stored
from vlpipe.pipeline.storage.store import Store

PROFILES = CHAIN + "profiles:\n  small: {scale: {by: 7}}\n  other: {scale: {by: 8}}\n"


@pytest.mark.slow
def test_only_what_no_file_and_no_profile_reaches_goes(tmp_path: Path) -> None:
    runs = Runs(tmp_path, PROFILES)
    runs("run", "--local")
    runs("run", "--local", "--profile", "small")
    before = left(runs.root)
    runs("run", "--local", "--set", "scale.by=9")
    said = [line.split(maxsplit=3) for line in runs("prune")[:-1]]
    assert [(folder.partition("-")[0], about) for _, _, folder, about in said] == [
        ("add", "an upstream step changed"),
        ("every", "an upstream step changed"),
        ("payload", "an upstream step changed"),
        ("scale", "parameter by changed 9 -> 3"),
        ("sum", "an upstream step changed"),
    ]
    assert len(left(runs.root)) > len(before)
    runs("prune", "--yes")
    after = left(runs.root)
    assert {n: d for n, d in after.items() if n != "_steps.json"} == {
        n: d for n, d in before.items() if n != "_steps.json"
    }


def listed(tmp_path: Path) -> Runs:
    """A profile whose list is there, and was run."""
    (tmp_path / "big.txt").write_text("9")
    numbers = '{use: "toys:Numbers", num_rows: 20, shard_rows: 6}'
    text = CHAIN.replace(numbers, numbers + '\n  last: {use: "toys:Every", from: numbers, k: 5}')
    big = f"profiles:\n  100: {{numbers: {{list: {tmp_path}/big.txt}}}}\n  small: {{scale: {{by: 7}}}}\n"
    runs = Runs(tmp_path, text + big)
    for args in ([], ["--profile", "100"], ["--set", "scale.by=9"]):
        runs("run", "--local", *args)
    return runs


@pytest.mark.slow
def test_prune_refuses_where_a_profile_cannot_be_loaded(tmp_path: Path) -> None:
    """Its list is on a disk that is not mounted here: what it keeps must not go."""
    runs = listed(tmp_path)
    there = left(runs.root)
    (tmp_path / "big.txt").rename(tmp_path / "unmounted.txt")
    for yes in ([], ["--yes"]):
        assert runs("prune", *yes, code=1)[-1] == (
            f"profile '100' of {runs.file} cannot be loaded here (line 12: numbers.list: there is no file or folder "
            f"'{tmp_path}/big.txt' (from {os.getcwd()})), so the folders it uses are unknown: nothing was removed; "
            "--drop-profile 100 prunes its folders"
        )
        assert left(runs.root) == there
    said = runs("prune", "--drop-profile", "1oo", code=1)
    assert said[-1] == "--drop-profile: there is no profile '1oo'; there are: 100, small"
    assert "removed" in runs("prune", "--drop-profile", "100", "--yes")[-1]
    assert len(list(runs.root.glob("numbers-*"))) == 1


@pytest.mark.slow
def test_a_profile_may_be_called_by_a_number(tmp_path: Path) -> None:
    runs = listed(tmp_path)
    runs("prune", "--yes", "--set", "scale.by=9")
    assert len(list(runs.root.glob("numbers-*"))) == 2  # of the file and of profile 100
    assert len(list(runs.root.glob("scale-*"))) == 3


@pytest.mark.slow
def test_what_set_made_is_kept_beside_what_the_file_makes(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    mine = {p.name for p in runs.root.glob("*-*")}
    runs("run", "--local", "--set", "scale.by=9")
    nines = {p.name for p in runs.root.glob("*-*")} - mine
    assert runs("prune", "--set", "scale.by=9")[-1].startswith("nothing to remove")
    assert "would remove 5 folder(s)" in runs("prune")[-1]
    assert {line.split()[2] for line in runs("prune")[:-1]} == nines
    others = {line.split()[2] for line in runs("prune", "--set", "scale.by=9", "--only-set")[:-1]}
    assert others == {name for name in mine if not name.startswith("numbers")}
    assert "--only-set has no effect alone" in " ".join(runs("prune", "--only-set", code=2))


def test_a_file_that_needs_set_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("9")
    runs = Runs(tmp_path, CHAIN.replace("num_rows: 20", "list: nowhere.txt"))
    chosen = ("--set", f"numbers.list={tmp_path}/list.txt")
    runs("run", "--local", *chosen)
    (error,) = (line for line in runs("prune", *chosen, "--yes", code=1) if "cannot be loaded" in line)
    assert error.endswith("; --set STEP.KEY=VALUE --only-set prunes the folders it uses without those values")
    assert runs("prune", *chosen, "--only-set", "--yes") == [f"nothing to remove in {runs.root}"]


def test_a_link_to_another_disk_stays(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    runs("run", "--local", "--set", "scale.by=9")
    for folder in runs.root.glob("every-*"):
        folder.rename(tmp_path / folder.name)
        folder.symlink_to(tmp_path / folder.name)
    said = runs("prune", "--yes")
    assert [line for line in said if "every" in line and line.endswith("  kept: it is a symbolic link")]
    assert len(list(runs.root.glob("every-*/manifest.json"))) == 2


def test_other_files_in_the_root_stay(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    photos = runs.root / "photos-deadbeef"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"mine")
    mixed = runs.root / "mixed-deadbeef"
    shutil.copytree(runs.step("every"), mixed)
    (mixed / "notes.txt").write_text("mine")
    plain = runs.root / "every-notakey"
    shutil.copytree(runs.step("every"), plain)
    said = runs("prune", "--yes")
    assert "  kept: it holds notes.txt, which vlpipe did not write" in said[0]
    assert said[-1] == f"nothing to remove in {runs.root}"
    assert (photos / "a.jpg").exists()
    assert (mixed / "manifest.json").exists()
    assert (plain / "manifest.json").exists()


def test_what_a_renamed_step_will_adopt_stays(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    former = runs.step("every")
    runs.file.write_text(CHAIN.replace("every:", "other:").replace("from: every", "from: other"))
    said = " ".join(vlpipe("prune", runs.file, "--root", runs.root, "--yes"))
    assert "the next run of step 'other' adopts what is in it" in said
    assert (former / "manifest.json").exists()
    runs("run", "--local")
    vlpipe("prune", runs.file, "--root", runs.root, "--yes")
    assert not former.exists()
    vlpipe("verify", runs.root)


def test_a_folder_that_holds_heavy_columns_of_a_reached_step_stays(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    numbers, moved = runs.step("numbers"), runs.root / "numbers-0123abcd"
    shutil.copytree(numbers, moved)
    store, scale = Store(str(runs.root)), runs.step("scale").name
    for index in receipt_numbers(store, scale):
        receipt = read_receipt(store, scale, index)
        pointers = tuple(
            one._replace(path=one.path.replace(numbers.name, moved.name)) for one in receipt.shard.heavy
        )
        write_receipt(store, scale, replace(receipt, shard=replace(receipt.shard, heavy=pointers)))
    (runs.step("scale") / "manifest.json").unlink()  # half done: its receipts are read one by one
    said = runs("prune", "--yes")
    assert said[0].endswith(f"{moved.name}  kept: {runs.step('scale').name} reads heavy columns in it")
    assert moved.exists()


@pytest.mark.slow
def test_prune_waits_for_no_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    runs("run", "--local", "--set", "scale.by=9")
    with locked(Store(str(runs.root))):
        assert "is in use by another run" in runs("prune", "--yes", code=1)[-1]
    assert "would remove 5 folder(s)" in runs("prune")[-1]


def test_a_folder_is_no_workflow(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    (error,) = vlpipe("prune", runs.root, "--yes", code=1)
    assert "is a folder, not a workflow file" in error
    assert runs.step("sum").exists()


def export(runs: Runs, step: str, to: Path, *args: str, code: int = 0) -> list[str]:
    return vlpipe("export", runs.file, step, to, "--root", runs.root, *args, code=code)


def test_exports_open_in_other_tools(tmp_path: Path) -> None:
    import datasets

    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    said = export(runs, "payload", tmp_path / "out")
    assert said[0].startswith("payload: 5 rows in 4 files, ")
    files = sorted(str(p) for p in (tmp_path / "out").iterdir())
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded.column_names == ["id", "n", "payload", "scaled", "total", "size"]
    assert loaded["payload"][:] == [payload(n, 10) for n in (0, 4, 8, 12, 16)]
    rows = duckdb.sql(
        f"select n, octet_length(payload) from '{tmp_path}/out/*.parquet' order by n"
    ).fetchall()
    assert rows == [(n, 10) for n in (0, 4, 8, 12, 16)]
    assert not any(f.metadata for f in pq.read_schema(files[0]))


def test_pictures_are_seen_as_pictures(tmp_path: Path) -> None:
    """By `datasets`, without a cast; of a row without one, nothing."""
    import datasets

    runs = Runs(tmp_path, PAGES)
    runs("run", "--local", "--until", "scored")
    export(runs, "scored", tmp_path / "out", "--pictures", "image", "--columns", "id,image")
    files = sorted(str(p) for p in (tmp_path / "out").iterdir())
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded[0]["image"].size == (24, 16)
    stored = loaded.cast_column("image", datasets.Image(decode=False))
    numbers = [int(id_[3:]) for id_ in stored["id"][:]]
    assert [one["bytes"] for one in stored["image"][:]] == [picture(n) for n in numbers]
    said = export(runs, "scored", tmp_path / "no", "--pictures", "width", code=1)[-1]
    assert said.startswith("--pictures: there is no column 'width' of bytes")
    rows = as_stored(pa.table({"image": pa.array([b"x", None], pa.binary())}), ["image"])
    assert rows["image"].to_pylist() == [{"bytes": b"x", "path": None}, None]
    assert as_read(rows).equals(rows)  # a user's own struct


def test_columns_are_chosen_in_order_heavy_ones_alone_too(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    export(runs, "payload", tmp_path / "two", "--columns", "payload, n")
    assert pq.read_schema(tmp_path / "two/000000.parquet").names == ["payload", "n"]
    export(runs, "payload", tmp_path / "one", "--columns", "payload")
    assert pq.read_table(tmp_path / "one/000000.parquet")["payload"].to_pylist() == [
        payload(n, 10) for n in (0, 4)
    ]


def test_export_errors(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local", "--until", "scale")
    to = tmp_path / "out"
    assert export(runs, "payload", to, code=1)[-1].endswith("run `vlpipe run --until payload` first")
    assert export(runs, "scal", to, code=1)[-1] == "there is no step 'scal'; did you mean 'scale'?"
    assert export(runs, "scale", to, "--columns", "pay", code=1)[-1].startswith(
        "--columns: there is no column 'pay'"
    )
    assert not to.exists()
    to.mkdir()
    (to / "a").touch()
    assert (
        export(runs, "scale", to, code=1)[-1]
        == f"{to} is not empty; export writes into a new or empty folder"
    )


@pytest.mark.slow
def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    """Any file system fsspec knows: here one in memory."""
    runs = Runs(tmp_path, CHAIN)
    root = f"memory://verbs{tmp_path.name}"
    vlpipe("run", runs.file, "--local", "--root", root)
    assert vlpipe("status", runs.file, "--root", root)[-1].startswith("toy: 7 of 7 steps are done")
    assert "    + scaled: 12" in vlpipe("why", runs.file, "id4", "--root", root)
    assert vlpipe("verify", root)[-1].endswith("all match their records")
    assert vlpipe("prune", runs.file, "--root", root) == [f"nothing to remove in {root}"]
    vlpipe("export", runs.file, "add", tmp_path / "out", "--root", root)
    assert pq.read_table(tmp_path / "out").num_rows == 5
