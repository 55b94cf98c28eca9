"""What is removed and what never is; what is exported opens elsewhere."""

import shutil
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from cli_helpers import Runs, vlpipe
from helpers import CHAIN, left
from toys import payload

from vlpipe.pipeline.lock import locked
from vlpipe.pipeline.store import Store

PROFILES = CHAIN + "profiles:\n  small: {scale: {by: 7}}\n  other: {scale: {by: 8}}\n"


def test_only_what_no_file_and_no_profile_reaches_goes(tmp_path: Path) -> None:
    runs = Runs(tmp_path, PROFILES)
    runs("run", "--local")
    runs("run", "--local", "--profile", "small")
    before = left(runs.root)
    runs("run", "--local", "--set", "scale.by=9")
    assert [line.split()[-1].partition("-")[0] for line in runs("prune")[:-1]] == [
        *("add", "every", "payload", "scale", "sum")
    ]
    assert len(left(runs.root)) > len(before)
    runs("prune", "--yes")
    after = left(runs.root)
    assert {n: d for n, d in after.items() if n != "_steps.json"} == {
        n: d for n, d in before.items() if n != "_steps.json"
    }


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
    assert "  stays: it holds notes.txt, which vlpipe did not write" in said[0]
    assert said[-1] == f"nothing to remove in {runs.root}"
    assert (photos / "a.jpg").exists()
    assert (mixed / "manifest.json").exists()
    assert (plain / "manifest.json").exists()


def test_a_folder_that_holds_heavy_columns_of_a_reached_step_stays(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    numbers, moved = runs.step("numbers"), runs.root / "numbers-0123abcd"
    shutil.copytree(numbers, moved)
    for receipt in (runs.step("scale") / "_receipts").iterdir():
        receipt.write_text(receipt.read_text().replace(numbers.name, moved.name))
    (runs.step("scale") / "manifest.json").unlink()  # half done: its receipts are read one by one
    said = runs("prune", "--yes")
    assert said[0].endswith(f"{moved.name}  stays: {runs.step('scale').name} reads heavy columns in it")
    assert moved.exists()


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
    assert export(runs, "payload", to, code=1)[-1].endswith("`vlpipe run --until payload` comes first")
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


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    """Any file system fsspec knows: here one in memory."""
    runs = Runs(tmp_path, CHAIN)
    root = f"memory://verbs{tmp_path.name}"
    vlpipe("run", runs.file, "--local", "--root", root)
    assert vlpipe("status", runs.file, "--root", root)[-1].startswith("toy: 7 of 7 steps are done")
    assert "    + scaled: 12" in vlpipe("why", runs.file, "id4", "--root", root)
    assert vlpipe("verify", root)[-1].endswith("all as their receipts say")
    assert vlpipe("prune", runs.file, "--root", root) == [f"nothing to remove in {root}"]
    vlpipe("export", runs.file, "add", tmp_path / "out", "--root", root)
    assert pq.read_table(tmp_path / "out").num_rows == 5
