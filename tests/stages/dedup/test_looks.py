from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather, run_map
from vlpipe.stages.dedup import exact
from vlpipe.stages.dedup.exact import ExactDuplicates
from vlpipe.stages.dedup.looks import LOOK, Looks, PictureLooks, from_arrow, joined, look_at, to_arrow
from vlpipe.stages.dedup.redecide import Decide

SCHEMA = pa.schema([("id", pa.string()), ("sha256", pa.string()), heavy("image", pa.binary())])


def png(seed: int, *, note: str = "", side: int = 48) -> bytes:
    """The same pixels for a seed; `note` changes the bytes only."""
    from PIL.PngImagePlugin import PngInfo

    small = np.random.default_rng(seed).integers(20, 220, (10, 10, 3)).astype(np.uint8)
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("note", note)
    image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def table(images: dict[str, bytes | None]) -> pa.Table:
    rows = [
        {"id": id_, "sha256": data and hashlib.sha256(data).hexdigest(), "image": data}
        for id_, data in images.items()
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def flat() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {"a": png(1), "b": png(1, note="x"), "c": png(2)[:-30], "d": None, "e": flat(), "f": b"<html>"}


def test_a_picture_s_looks_and_why_it_has_none() -> None:
    found = run_map(PictureLooks(), table(IMAGES)).table["looks"].to_pylist()
    assert [each["why"] for each in found] == [None, None, "truncated", "empty", None, "not_an_image"]
    assert [each["phash"] is None for each in found] == [False, False, True, True, True, True]
    assert found[0] == found[1]
    assert found[4]["colours"] == bytes([200, 10, 10]) * 16


def test_looks_survive_a_column(photos: list[Path]) -> None:
    seen = look_at([*IMAGES.values(), *(photo.read_bytes() for photo in photos[:300])])
    whole = pa.chunked_array([to_arrow(seen)])
    again = joined(
        [from_arrow(whole.slice(0, 5)), from_arrow(whole.slice(5, 299)), from_arrow(whole.slice(304))]
    )
    for before, after in zip(seen, again, strict=True):
        assert before.shape == after.shape
    assert (seen.hashes[seen.seen] == again.hashes[again.seen]).all()
    assert (seen.colours == again.colours).all()
    assert (seen.why == again.why).all()
    none = from_arrow(pa.chunked_array([pa.nulls(2, LOOK)]))
    assert (none.seen.tolist(), none.colours.shape) == ([False, False], (2, 48))


def test_stored_looks_decide_as_the_images_do_and_no_image_is_read(tmp_path: Path) -> None:
    rows = table(IMAGES | {f"r{n}": png(n // 2, side=48 + n % 2 * 20) for n in range(40)})
    stored = run_map(PictureLooks(), rows).table.drop_columns(["image"])
    want = run_gather(ExactDuplicates(phash=True), [dataset(tmp_path / "1", rows)], tmp_path / "1")
    data = dataset(tmp_path / "2", stored, shard_rows=7)
    got = run_gather(ExactDuplicates(phash=True), [data], tmp_path / "2")
    assert got.table.equals(want.table)
    assert pq.read_table(got.artifacts / "edges.parquet").equals(
        pq.read_table(want.artifacts / "edges.parquet")
    )
    assert list((tmp_path / "2/work").iterdir()) == []
    mixed = run_gather(
        ExactDuplicates(phash=True),
        [dataset(tmp_path / "3", stored.slice(0, 9), "a"), dataset(tmp_path / "3", rows.slice(9), "b")],
        tmp_path / "3",
    )
    assert mixed.table.equals(want.table)


def test_a_column_of_that_name_must_be_what_the_stage_writes() -> None:
    with pytest.raises(SchemaError, match=r"dedup\.exact reads column 'looks' as struct<phash"):
        ExactDuplicates(phash=True).schema(SCHEMA.append(pa.field("looks", pa.int64())))


def hub(tmp_path: Path, num: int) -> GatherOutput:
    """`num` files with the same pixels and other bytes, twice each; and two files of another picture."""
    images = {f"r{n:05d}": png(1, note=str(n % num)) for n in range(2 * num)}
    return run_gather(
        ExactDuplicates(phash=True),
        [dataset(tmp_path, table(images | {"x": png(2), "y": png(2, note="y")}), shard_rows=500)],
        tmp_path / "step",
    )


def test_one_picture_in_many_files_costs_one_edge_each(tmp_path: Path) -> None:
    got = hub(tmp_path, 30)
    edges = pq.read_table(got.artifacts / "edges.parquet")
    assert sorted(edges["kind"].to_pylist()) == ["same_bytes"] * 30 + ["same_looks"] * 30
    rows = {row["id"]: row for row in got.table.to_pylist()}
    (best,) = {row["group"] for id_, row in rows.items() if id_[0] == "r"}
    assert rows[best]["keep"]
    assert sum(row["keep"] for row in rows.values()) == 2
    same_file = f"r{(int(best[1:]) + 30) % 60:05d}"
    assert [id_ for id_, row in rows.items() if row["why"] == "exact_duplicate"] == [same_file]
    assert all(
        row["similarity"] == 1 and row["witness"] == best
        for i, row in rows.items()
        if i[0] == "r" and i != best
    )


@pytest.mark.parametrize("rule", ["greedy", "semdedup", "components"])
def test_decided_again_with_another_order_they_share_one_fate(tmp_path: Path, rule: Any) -> None:
    got = hub(tmp_path, 10)
    rows = table(dict.fromkeys(got.table["id"].to_pylist(), b""))
    number = pa.array([int(i[1:]) if i[0] == "r" else 0 for i in rows["id"].to_pylist()])
    rows = rows.drop_columns(["image"]).append_column("number", number)
    again = run_gather(
        Decide(edges=File(path=str(got.artifacts)), keep=("number desc",), rule=rule),
        [dataset(tmp_path / "again", rows)],
        tmp_path / "again",
    )
    found = {row["id"]: row for row in again.table.to_pylist()}
    assert sorted(i for i, row in found.items() if row["keep"]) == ["r00019", "x"]
    assert found["r00009"]["why"] == "exact_duplicate", "the same bytes as r00019"
    assert {row["why"] for i, row in found.items() if i not in ("r00019", "r00009", "x")} == {
        "near_duplicate"
    }


def test_a_flood_of_pairs_is_an_error_not_a_memory_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One hash, many colours: they cannot stand for each other."""
    num = 400
    colours = np.random.default_rng(0).integers(100, 110, (num, 48)).astype(np.uint8)
    looks = Looks(np.full(num, 5, np.uint64), colours, np.ones(num, np.bool_), np.full(num, None, object))
    rows = pa.table(
        {"id": [str(n) for n in range(num)], "sha256": [str(n) for n in range(num)], "looks": to_arrow(looks)}
    )
    monkeypatch.setattr(exact, "MIN_PAIR_LIMIT", 10_000)
    monkeypatch.setattr(exact, "PAIRS_PER_ROW", 10)
    with pytest.raises(
        VlpipeError, match=r"more than 10,000 pairs of images differ in at most 10 bits: many versions"
    ):
        run_gather(ExactDuplicates(phash=True), [dataset(tmp_path, rows)], tmp_path / "step")


def earlier(path: Path, rows: pa.Table) -> File:
    path.mkdir(parents=True)
    pq.write_table(
        run_map(PictureLooks(), rows).table.select(["id", "sha256", "looks"]), path / "000000.parquet"
    )
    return File(path=str(path))


def test_new_rows_are_compared_with_an_earlier_set_that_stays(tmp_path: Path) -> None:
    kept = {"e1": png(1), "e2": png(2), "e3": png(1, note="also kept then")}
    new = {
        "same bytes": png(2),
        "same looks": png(1, note="new"),
        "smaller": png(2, side=40),
        "other": png(3),
        "duplicate of other": png(3, side=40),
        "flat": flat(),
        "broken": b"<html>",
    }
    against = earlier(tmp_path / "old", table(kept))
    stage = ExactDuplicates(phash=True, against=against)
    got = run_gather(stage, [dataset(tmp_path, table(new), shard_rows=2)], tmp_path / "step")
    rows = {row["id"]: row for row in got.table.to_pylist()}
    assert list(rows) == list(new), "no decision about an earlier row"
    assert {i: (r["why"], r["witness"]) for i, r in rows.items()} == {
        "same bytes": ("exact_duplicate", "e2"),
        "same looks": ("near_duplicate", "e1"),
        "smaller": ("near_duplicate", "e2"),
        "other": (None, None),
        "duplicate of other": ("near_duplicate", "other"),
        "flat": (None, None),
        "broken": ("not_compared_not_an_image", None),
    }
    edges = pq.read_table(got.artifacts / "edges.parquet").to_pylist()
    assert {(e["a"], e["b"]) for e in edges if e["earlier"]} >= {("same bytes", "e2"), ("same looks", "e1")}
    assert not [e for e in edges if e["a"].startswith("e")], "no pair of two earlier rows"
    light = table(new).drop_columns(["image"])
    decide_again = Decide(edges=File(path=str(got.artifacts)), keep=("sha256",), rule="components")
    again = run_gather(decide_again, [dataset(tmp_path / "again", light)], tmp_path / "again")
    assert {r["id"] for r in again.table.to_pylist() if r["keep"]} >= {"flat", "broken"}
    assert not {r["id"] for r in again.table.to_pylist() if r["keep"]} & {
        "same bytes",
        "same looks",
        "smaller",
    }


def test_in_batches_as_all_at_once(tmp_path: Path) -> None:
    """What is kept of a first and then of a second half is what is kept of both, where a first row is always better."""
    images = {f"r{n:03d}": png(n % 25, note=str(n % 3), side=48 - n % 2 * 8) for n in range(60)}
    rows = table(images).append_column("order", pa.array([f"{n:03d}" for n in range(60)]))
    whole = run_gather(ExactDuplicates(phash=True), [dataset(tmp_path, rows)], tmp_path / "whole")
    decided = run_gather(
        Decide(edges=File(path=str(whole.artifacts)), keep=("order",)),
        [dataset(tmp_path, rows.drop_columns(["image"]), "light")],
        tmp_path / "decided",
    )
    want = {r["id"] for r in decided.table.to_pylist() if r["keep"]}
    first = {i for i in want if i < "r030"}
    keep = pa.array([i in first for i in rows["id"].to_pylist()])
    against = earlier(tmp_path / "old", rows.filter(keep).drop_columns(["order"]))
    stage = ExactDuplicates(phash=True, against=against)
    new = dataset(tmp_path, rows.slice(30), "new")
    got = run_gather(stage, [new], tmp_path / "second")
    assert {r["id"] for r in got.table.to_pylist() if not r["keep"]} == {
        f"r{n:03d}" for n in range(30, 60)
    } - want


def test_an_earlier_set_without_looks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    pq.write_table(pa.table({"id": ["old"], "sha256": ["b"]}), path)
    stage = ExactDuplicates(phash=True, against=File(path=str(path)))
    with pytest.raises(
        SchemaError, match=r"against \(.*old.parquet\) reads column 'looks', which its input does not have"
    ):
        run_gather(stage, [dataset(tmp_path, table(IMAGES))], tmp_path / "step")
    bytes_only = run_gather(
        ExactDuplicates(against=File(path=str(path))), [dataset(tmp_path, table(IMAGES))], tmp_path / "bytes"
    )
    assert bytes_only.table.num_rows == len(IMAGES)
