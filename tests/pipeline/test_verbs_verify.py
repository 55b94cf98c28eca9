"""What can be wrong with files, one thing at a time, and that the advice mends it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import Runs, vlpipe
from helpers import CHAIN

from vlpipe.pipeline.engine.records.receipts import read_receipts, write_receipt
from vlpipe.pipeline.engine.records.rejects import rejects_path
from vlpipe.pipeline.storage.store import Store


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def copy_as(name: str) -> Callable[[Path], None]:
    return lambda path: (path.parent / name).write_bytes(path.read_bytes()) and None


def swap_rejects(path: Path) -> None:
    path.write_bytes((path.parent / "000003.parquet").read_bytes())


WRONG = [
    ("every", "000001.parquet", Path.unlink, "missing", "000001.parquet"),
    ("every", "000001.parquet", flip, "damaged", "000001.parquet"),
    ("every", "_rejects/000001.parquet", Path.unlink, "missing", "_rejects/000001.parquet"),
    ("every", "_rejects/000001.parquet", cut, "damaged", "_rejects/000001.parquet"),
    ("every", "_rejects/000001.parquet", swap_rejects, "damaged", "_rejects/000001.parquet"),
    ("every", "_receipts/000001.json", Path.unlink, "missing", "_receipts/000001.json"),
    ("every", "_receipts/000001.json", cut, "damaged", "_receipts/000001.json"),
    ("every", "manifest.json", cut, "damaged", "manifest.json"),
    ("every", "_shards.parquet", cut, "damaged", "_shards.parquet"),
    ("sum", "artifacts/sum.json", flip, "damaged", "artifacts/sum.json"),
    ("sum", "artifacts/sum.json", Path.unlink, "missing", "artifacts/sum.json"),
]


@pytest.mark.parametrize(("step", "file", "harm", "kind", "named"), WRONG)
def test_each_damage_is_named(
    tmp_path: Path, step: str, file: str, harm: Callable[[Path], None], kind: str, named: str
) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    harm(runs.step(step) / file)
    said = vlpipe("verify", runs.step(step), code=1)
    assert said[0].split()[:2] == [kind, str(runs.step(step) / named)]
    assert "1 error(s)" in said[1]


def test_a_lost_shard_is_named_by_the_steps_that_point_to_it(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    lost = runs.step("numbers") / "000002.parquet"
    lost.unlink()
    said = vlpipe("verify", runs.root, code=1)
    assert f"missing    {lost}" in said
    assert sum(f"it holds payload of {runs.step('scale').name}" in line for line in said) == 1


@pytest.mark.parametrize("name", ["000009.parquet", "000001.parquet.0123abcd.part"])
def test_what_a_killed_run_left_is_named_but_is_not_wrong(tmp_path: Path, name: str) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    copy_as(name)(runs.step("every") / "000001.parquet")
    said = vlpipe("verify", runs.root)
    assert said[0].split()[:3] == ["left", "over", str(runs.step("every") / name)]
    assert said[-1].endswith("all match their records")


def test_one_shard_alone(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    flip(runs.step("every") / "000001.parquet")
    good, bad = (runs.step("every") / f"00000{k}.parquet" for k in (0, 1))
    assert vlpipe("verify", good) == ["1 shard(s) and 0 artifact(s) of 1 step(s): all match their records"]
    assert vlpipe("verify", bad, code=1)[0].startswith(f"damaged    {bad}")


def test_the_advice_mends_it(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    step = runs.step("scale")
    before = (step / "000001.parquet").read_bytes()
    flip(step / "000001.parquet")
    (step / "manifest.json").unlink()
    (step / "_receipts/000001.json").unlink()
    said = runs("run", "--local")
    assert any(line.startswith("scale: 4 shard(s), 3 reused") for line in said)
    assert (step / "000001.parquet").read_bytes() == before
    vlpipe("verify", runs.root)


def test_a_path_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (error,) = vlpipe("verify", tmp_path / "photos", code=1)
    assert error == (
        f"{tmp_path}/photos is neither an output root, nor a step's folder (STEP-0123abcd), nor a shard, nor a Parquet file"
    )


def test_a_forget_that_was_interrupted_is_told(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    (runs.root / "_forget.json").write_text("{}")
    assert (
        f"unfinished  {runs.root}/_forget.json  a forget was interrupted; `vlpipe run` finishes it"
        in vlpipe("verify", runs.root)
    )
    (runs.root / "_forget.json").write_text("{")
    assert any(
        line.startswith(f"damaged    {runs.root}/_forget.json")
        for line in vlpipe("verify", runs.root, code=1)
    )


def test_a_shard_beyond_six_digits_is_one_like_any_other(tmp_path: Path) -> None:
    """Of an unfinished step, whose shards need not be in a row."""
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    step, store = runs.step("every"), Store(str(runs.root))
    (receipt,) = (r for r in read_receipts(store, step.name) if r.index == 1)
    far, path = 1_000_000, f"{step.name}/1000000.parquet"
    store.link_or_copy(receipt.shard.path, path)
    store.link_or_copy(rejects_path(step.name, 1), rejects_path(step.name, far))
    shard = dataclasses.replace(receipt.shard, path=path)
    write_receipt(store, step.name, dataclasses.replace(receipt, index=far, shard=shard))
    (step / "manifest.json").unlink()
    one = ["1 shard(s) and 0 artifact(s) of 1 step(s): all match their records"]
    assert vlpipe("verify", step / "1000000.parquet") == one
    assert any(
        "5 shard(s) so far" in line for line in vlpipe("verify", step, code=1)
    )  # the rows of shard 1 twice
    assert vlpipe("show", step / "1000000.parquet")[0].split() == ["shard", f"{step.name}/1000000.parquet"]
    assert vlpipe("show", step / "_rejects" / "1000000.parquet")
    assert vlpipe("diff", step, step)[-1] == "no difference"
