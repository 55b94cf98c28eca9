"""`verify` follows what a step was made from: swapped artifacts, heavy columns of other bytes, other code, ids twice."""

import dataclasses
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from cli_helpers import Runs, vlpipe
from helpers import CHAIN

from vlpipe.pipeline.engine.records.manifest import manifest_from_json, write_manifest
from vlpipe.pipeline.engine.records.receipts import Receipt, read_receipts, write_receipt
from vlpipe.pipeline.inspect.on_disk import read_step
from vlpipe.pipeline.inspect.verify.ids import Ids
from vlpipe.pipeline.shard import write_shard
from vlpipe.pipeline.storage.checksummed_json import read_sealed
from vlpipe.pipeline.storage.store import Store


def wrong(runs: Runs, code: int = 1) -> list[list[str]]:
    """(kind, path below the root, text) of each line about a problem."""
    found = []
    for line in vlpipe("verify", runs.root, code=code):
        kind, _, rest = line.partition(f"{runs.root}/")
        if rest:
            path, _, text = rest.partition("  ")
            found.append([kind.strip(), path, text])
    return found


def test_a_step_that_is_gone_is_missed_by_what_was_made_from_it(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    every, total = runs.step("every").name, runs.step("sum").name
    shutil.rmtree(runs.step("every"))
    assert ["missing", every, f"{total} was made from it"] in wrong(runs)


def test_the_step_of_an_artifact_that_is_gone_is_missed(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    add = runs.step("add").name
    shutil.rmtree(runs.step("sum"))
    (found,) = [one for one in wrong(runs) if one[0] == "missing"]
    assert found[1] == f"{add}/manifest.json"
    assert found[2].startswith("its input total comes from a step that is not in this root")


LISTED = """
name: listed
steps:
  few: {use: "toys:Numbers", num_rows: 4}
  sum: {use: "toys:Sum", from: few}
  numbers: {use: "toys:SourcedNumbers", list: {from: sum, path: sum.json}, more: {a.b: {from: sum, path: sum.json}}}
"""


def test_a_parameter_called_source_is_not_the_stage_that_lists_the_rows(tmp_path: Path) -> None:
    """A listing step's file parameters are recorded as those of `source`; keys of a mapping may have dots."""
    runs = Runs(tmp_path, LISTED)
    runs("run", "--local")
    assert wrong(runs, code=0) == []


def test_an_empty_step_is_no_whole_one(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local", "--until", "scale")
    step = runs.step("scale")
    for path in sorted(step.rglob("*"), reverse=True):
        if path.is_file() and path.suffix != ".parquet":
            path.unlink()
    said = vlpipe("verify", step)
    assert said[0] == f"unfinished  {step}  nothing in it is finished; it has no manifest.json"
    assert said[-1] == (
        "0 shard(s) and 0 artifact(s) of 1 step(s), 1 of them unfinished: there is nothing to read yet"
    )


def other_bytes(runs: Runs, step: str, world: Path) -> None:
    """Make the first shard of a step again, in another world, as it is done after damage."""
    world.write_text("new")
    folder = runs.step(step)
    (folder / "000000.parquet").unlink()
    (folder / "manifest.json").unlink()
    (folder / "_receipts/000000.json").unlink()
    runs("run", "--local", "--until", step)


def pictures(folder: Path) -> tuple[Runs, Path]:
    world = folder / "world"
    world.write_text("old")
    text = (
        "name: pictures\nsteps:\n"
        f"  given: {{use: 'look_toys:Given', ids: [x, y, z], world: {world}, shard_rows: 2}}\n"
        "  same: {use: 'look_toys:Same', from: given}\n"
        "  look: {use: 'look_toys:Look', from: same}\n"
        "  again: {use: 'look_toys:Same', from: look}\n"
    )
    runs = Runs(folder, text)
    runs("run", "--local")
    return runs, world


def test_a_heavy_column_that_was_made_again(tmp_path: Path) -> None:
    """`same` has no byte of a picture, `look` has read them; both are told, and the next run mends it."""
    runs, world = pictures(tmp_path)
    other_bytes(runs, "given", world)
    found = wrong(runs)
    same, look = runs.step("same").name, runs.step("look").name
    assert ["out of date", f"{same}/000000.parquet"] in [one[:2] for one in found]
    assert ["out of date", f"{look}/000000.parquet"] in [one[:2] for one in found]
    assert not [one for one in found if one[0] not in ("out of date", "left over")]
    runs("run", "--local")
    assert not wrong(runs, code=0)


def test_rows_retried_make_what_is_below_out_of_date(tmp_path: Path) -> None:
    up = tmp_path / "up"
    up.write_text("0 1 3")
    runs = Runs(
        tmp_path,
        "name: ask\nsteps:\n  numbers: {use: 'toys:Numbers', num_rows: 4, shard_rows: 2}\n"
        f"  ask: {{use: 'look_toys:Ask', from: numbers, up: {up}}}\n"
        "  scale: {use: 'toys:Scale', from: ask}\n",
    )
    runs("run", "--local")
    up.write_text("2")
    runs("retry", "ask", "--why", "down", "--local")
    scale = runs.step("scale").name
    found = wrong(runs)
    assert [one[:2] for one in found] == [
        ["out of date", f"{scale}/manifest.json"],
        ["out of date", f"{scale}/_receipts/000001.json"],
    ]
    assert found[0][2].endswith("`vlpipe run` recomputes it")
    runs("run", "--local")
    assert not wrong(runs, code=0)


def test_swapped_artifacts_in_old_rows(tmp_path: Path) -> None:
    """A manifest that says its rows were made from the other file of two is out of date."""
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    store, folder = Store(str(runs.root)), runs.step("add").name
    manifest = read_sealed(store, f"{folder}/manifest.json")
    manifest["read"] = {"total": "0" * 64}
    write_manifest(store, folder, manifest_from_json(manifest), read_receipts(store, folder))
    found = wrong(runs)
    assert ["out of date", f"{folder}/manifest.json"] in [one[:2] for one in found]
    assert any("made from another total than sum-" in one[2] for one in found)


def test_the_folder_of_a_former_name_is_not_what_a_step_was_made_from(tmp_path: Path) -> None:
    """A renamed step has the key of before. After rows were retried, its two folders have different artifacts."""
    up = tmp_path / "up"
    up.write_text("0 1 3")
    text = (
        "name: ask\nsteps:\n  numbers: {use: 'toys:Numbers', num_rows: 4, shard_rows: 2}\n"
        f"  ask: {{use: 'look_toys:Ask', from: numbers, up: {up}}}\n"
        "  zsum: {use: 'toys:Sum', from: ask}\n"
        "  add: {use: 'toys:AddSum', from: ask, total: {from: zsum, path: sum.json}}\n"
    )
    runs = Runs(tmp_path, text)
    runs("run", "--local")
    runs.file.write_text(text.replace("zsum", "sum"))
    runs("run", "--local")
    up.write_text("2")
    runs("retry", "ask", "--why", "down", "--local")
    runs("run", "--local")
    former, now = runs.step("zsum"), runs.step("sum")
    assert former.name.partition("-")[2] == now.name.partition("-")[2]
    assert (former / "artifacts/sum.json").read_text() != (now / "artifacts/sum.json").read_text()
    assert {one[1].partition("/")[0] for one in wrong(runs)} == {former.name}


@pytest.mark.parametrize("name", ["every", "sum"])
def test_the_unfinished_folder_of_a_former_name_makes_nothing_out_of_date(tmp_path: Path, name: str) -> None:
    """Its rows or its artifacts are in the folder of the new name, from which nothing below was made again."""
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    former = runs.step(name)
    runs.file.write_text(re.sub(rf"\b{name}:", "other:", CHAIN).replace(f"from: {name}", "from: other"))
    runs("run", "--local")
    (former / "manifest.json").unlink()
    assert [one[:2] for one in wrong(runs, code=0)] == [["unfinished", former.name]]


def test_a_step_over_rows_of_a_gather_step_that_were_made_anew_is_out_of_date_and_not_damaged(
    tmp_path: Path,
) -> None:
    """The shards of a gather step have keys of their content: after a retry, none of a folder left behind fits any more."""
    up, one, two = tmp_path / "up", tmp_path / "one.json", tmp_path / "two.json"
    up.write_text("0 1 3")
    one.write_text("1")
    two.write_text("2")
    text = (
        "name: ask\nsteps:\n  numbers: {use: 'toys:Numbers', num_rows: 4, shard_rows: 2}\n"
        f"  ask: {{use: 'look_toys:Ask', from: numbers, up: {up}}}\n"
        "  decide: {use: 'verb_toys:Decide', from: ask}\n"
        f"  add: {{use: 'toys:AddSum', from: decide, total: {one}}}\n"
    )
    runs = Runs(tmp_path, text)
    runs("run", "--local")
    former = runs.step("add").name
    runs.file.write_text(text.replace(str(one), str(two)))
    runs("run", "--local")
    up.write_text("2")
    runs("retry", "ask", "--why", "down", "--local")
    runs("run", "--local")
    found = wrong(runs)
    assert {(kind, path.partition("/")[0]) for kind, path, _ in found} == {("out of date", former)}
    assert any("made from another shard than decide-" in text for *_, text in found)


def forge(runs: Runs, step: str) -> str:
    """Gives all receipts of a finished step another input digest; returns the step's folder."""
    store, folder = Store(str(runs.root)), runs.step(step).name
    record = read_step(store, folder)
    assert record.manifest is not None
    forged = [dataclasses.replace(r, input_digest="0" * 64) for r in record.receipts]
    for receipt in forged:
        write_receipt(store, folder, receipt)
    write_manifest(store, folder, record.manifest, forged)
    return folder


def test_forged_receipts_do_not_fit_their_inputs(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    folder = forge(runs, "scale")
    assert [one[:2] for one in wrong(runs)] == [
        ["out of date", f"{folder}/_receipts/{k:06d}.json"] for k in range(4)
    ]


def test_a_forged_receipt_of_a_gather_step_is_damaged(tmp_path: Path) -> None:
    """It has one shard, so that no other receipt tells what its inputs were."""
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    folder = forge(runs, "sum")
    assert ["damaged", f"{folder}/_receipts/000000.json"] in [one[:2] for one in wrong(runs)]


def test_shards_by_two_versions_of_the_code_are_told(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    store, folder = Store(str(runs.root)), runs.step("scale").name
    record = read_step(store, folder)
    assert record.manifest is not None
    receipts = [dataclasses.replace(record.receipts[0], source="older"), *record.receipts[1:]]
    write_receipt(store, folder, receipts[0])
    sources = ("older", *record.manifest.sources)
    write_manifest(store, folder, dataclasses.replace(record.manifest, sources=sources), receipts)
    ((kind, path, text),) = wrong(runs, code=0)
    assert (kind, path) == ("mixed code", folder)
    assert text.startswith("the code of the stage changed, but its VERSION did not: ")
    assert text.endswith("1 shard(s) by older")


def given(folder: Path, ids: list[str], shard_rows: int) -> Runs:
    text = f"name: given\nsteps:\n  given: {{use: 'look_toys:Given', ids: {ids}, shard_rows: {shard_rows}}}\n"
    runs = Runs(folder, text)
    runs("run", "--local")
    return runs


def test_ids_are_unique_across_shards(tmp_path: Path) -> None:
    runs = given(tmp_path, ["x", "y", "x", "z", "x"], 1)
    found = [one for one in wrong(runs) if one[1].startswith("given-")]
    name = runs.step("given").name
    also = f"{name}/000002.parquet, {name}/000004.parquet"
    assert found == [["repeated", f"{name}/000000.parquet", f"id x occurs 3 times, also in {also}"]]


def test_rows_without_an_id_are_counted(tmp_path: Path) -> None:
    """No step writes such a shard today."""
    store, ids = Store(str(tmp_path)), Ids()
    schema = pa.schema([("id", pa.string())])
    shard = write_shard(store, "a/000000.parquet", [pa.table({"id": ["x", "", None, "y"]}, schema)], schema)
    assert ids.add(store, Receipt(index=0, shard=shard, bytes=0, rows_in=0)) == (4, 2)


@pytest.mark.slow
def test_a_renamed_step_whose_old_folder_was_pruned_is_followed(tmp_path: Path) -> None:
    """Records of what is below name the old folder; `verify` and `forget` find the step by the key in its name."""
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    runs.file.write_text(CHAIN.replace("  every:", "  kept:").replace("from: every", "from: kept"))
    runs("run", "--local")
    runs("prune", "--yes")
    assert not list(runs.root.glob("every-*"))
    assert "all match their records" in vlpipe("verify", runs.root)[-1]
    (tmp_path / "list.txt").write_text("id:id4\n")
    said = runs("forget", tmp_path / "list.txt", "--yes")
    assert any("sum-" in line for line in said)  # the artifact made from the rows of the renamed step
    assert "all match their records" in vlpipe("verify", runs.root)[-1]
