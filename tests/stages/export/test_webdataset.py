"""Tars of a step's rows: read back by tarfile, by our own reader and by the webdataset library."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Heavy, Reject, Shard, write_shard
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather, run_map
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.export.webdataset import WRITTEN, WriteWebdataset
from vlpipe.stages.tars.webdataset import FromWebdataset

KINDS = ("JPEG", "PNG", "WEBP", "GIF")
ENDINGS = ("jpg", "png", "webp", "gif")
SCHEMA = pa.schema(
    [*LISTED, *IMAGE_FIELDS, pa.field("score", pa.float32()), pa.field("tags", pa.list_(pa.int8()))]
)


def encoded(n: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(n).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, KINDS[n % 4])
    return buffer.getvalue()


def row(n: int, texts: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    image = encoded(n)
    return {
        "id": hashlib.sha256(str(n).encode()).hexdigest(),
        "url": f"http://a.test/{n}",
        "texts": [text(f"caf\u00e9 {n}", "web")] if texts is None else texts,
        "sha256": hashlib.sha256(image).hexdigest(),
        "format": KINDS[n % 4],
        "width": 8,
        "height": 6,
        "image": image,
        "score": float("nan") if n == 0 else 0.5,
        "tags": [n],
    }


def made(folder: Path, rows: list[dict[str, Any]], shard_rows: int = 4) -> Dataset:
    return dataset(folder, pa.Table.from_pylist(rows, SCHEMA), shard_rows=shard_rows)


def export(folder: Path, data: Dataset, **more: Any) -> GatherOutput:
    stage = WriteWebdataset(**more)
    assert stage.schema(data.schema) == WRITTEN
    return run_gather(stage, [data], folder)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]


TEXTS = [
    text("low", "web", score=0.2, kept=True),
    text("dropped", "web", score=0.99, kept=False, why="low_score"),
    text(" ", "web", score=0.98),
    text("none", "web"),
    text("two\nlines", "synth", score=0.9, kept=True),
    text("equal", "synth", score=0.9, kept=True),
]


def test_a_tar_per_shard_with_every_row(tmp_path: Path) -> None:
    rows = [row(n) for n in range(10)]
    got = export(tmp_path, made(tmp_path, rows))
    names = ["000000.tar", "000001.tar", "000002.tar"]
    assert sorted(path.name for path in got.artifacts.iterdir()) == [*names, "sizes.json"]
    assert json.loads((got.artifacts / "sizes.json").read_text()) == dict(zip(names, (4, 4, 2), strict=True))
    assert got.table.to_pylist() == [
        {
            "file": name,
            "num_samples": num,
            "num_bytes": (got.artifacts / name).stat().st_size,
            "sha256": hashlib.sha256((got.artifacts / name).read_bytes()).hexdigest(),
        }
        for name, num in zip(names, (4, 4, 2), strict=True)
    ]
    found = members(got.artifacts / "000000.tar")
    keys = [one["id"] for one in rows[:4]]
    assert list(found) == [
        f"{key}.{end}" for key, image in zip(keys, ENDINGS, strict=True) for end in (image, "json", "txt")
    ]
    assert found[f"{keys[1]}.png"] == rows[1]["image"]
    assert found[f"{keys[1]}.txt"].decode() == "caf\u00e9 1"
    about = {
        name: rows[1][name] for name in ("id", "url", "sha256", "format", "width", "height", "score", "texts")
    }
    assert json.loads(found[f"{keys[1]}.json"]) == about
    assert json.loads(found[f"{keys[0]}.json"])["score"] is None  # JSON knows no NaN


@pytest.mark.parametrize(
    ("parameters", "wanted", "chosen"),
    [
        ({}, "two\nlines", ["two\nlines"]),
        ({"texts": "first"}, "low", ["low"]),
        ({"texts": "first", "sources": ("synth",)}, "two\nlines", ["two\nlines"]),
        ({"sources": ("web",)}, "low", ["low"]),
        ({"texts": "all"}, "low\nnone\ntwo lines\nequal", ["low", "none", "two\nlines", "equal"]),
    ],
)
def test_which_texts(tmp_path: Path, parameters: Any, wanted: str, chosen: list[str]) -> None:
    got = export(tmp_path, made(tmp_path, [row(0, TEXTS)]), **parameters)
    by_ending = {
        name.rpartition(".")[2]: body for name, body in members(got.artifacts / "000000.tar").items()
    }
    assert by_ending["txt"].decode() == wanted
    assert [one["text"] for one in json.loads(by_ending["json"])["texts"]] == chosen


def test_rows_without_a_kept_text_are_named(tmp_path: Path) -> None:
    rows = [row(0), row(1, []), row(2, [text("no", "web", kept=False)]), row(3, [text("s", "synth")])]
    got = export(tmp_path / "a", made(tmp_path / "a", rows), sources=("web", "human"))
    assert got.table["num_samples"].to_pylist() == [1]
    assert got.rejects == [
        Reject(rows[n]["id"], "filtered", "no_text_kept", "no text of web, human") for n in (1, 2, 3)
    ]
    none = export(tmp_path / "b", made(tmp_path / "b", rows[1:3]))
    assert members(none.artifacts / "000000.tar") == {}
    assert len(none.rejects) == 2


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    rows = [row(n) for n in range(6)]
    once = export(tmp_path / "a", made(tmp_path / "a", rows))
    again = export(tmp_path / "b", made(tmp_path / "b", rows))
    assert once.table.equals(again.table)
    with tarfile.open(once.artifacts / "000000.tar") as tar:
        for one in tar:
            assert (one.mtime, one.uid, one.gid, one.uname, one.gname, one.mode) == (0, 0, 0, "", "", 0o644)


def test_a_killed_run_keeps_its_finished_tars(tmp_path: Path) -> None:
    rows = [row(n, [] if n == 1 else None) for n in range(8)]
    data = made(tmp_path, rows)
    lost = tmp_path / "input" / "000001.parquet"
    whole = lost.read_bytes()
    lost.unlink()
    with pytest.raises(VlpipeError, match=r"000001.parquet is missing"):
        export(tmp_path, data)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["000000.json", "000000.tar"]
    assert not list((tmp_path / "artifacts").iterdir())
    first = (tmp_path / "input" / "000000.parquet").read_bytes()
    (tmp_path / "input" / "000000.parquet").unlink()  # it is not read again
    lost.write_bytes(whole)
    resumed = export(tmp_path, data)
    (tmp_path / "input" / "000000.parquet").write_bytes(first)
    fresh = export(tmp_path / "fresh", data)
    assert resumed.table.equals(fresh.table)
    assert resumed.rejects == fresh.rejects
    assert [reject.id for reject in resumed.rejects] == [rows[1]["id"]]


def test_images_are_joined_from_the_step_that_has_them(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([row(n) for n in range(4)], SCHEMA)
    store = Store(str(tmp_path))
    full = write_shard(store, "images/000000.parquet", [rows], SCHEMA)
    light = pa.schema([f for f in SCHEMA if f.name != "image"])
    later = write_shard(store, "kept/000000.parquet", [rows.take([3, 1]).drop_columns("image")], light)
    shard = Shard(path=later.path, num_rows=2, digest="", heavy=(Heavy("image", full.path, ""),))
    got = export(tmp_path / "out", Dataset(store, "kept", SCHEMA, (shard,)))
    images = [body for name, body in members(got.artifacts / "000000.tar").items() if name[-3:] in ENDINGS]
    assert images == [rows["image"][n].as_py() for n in (3, 1)]


def test_rows_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(
        SchemaError, match=r"export.webdataset reads column 'image', which its input does not have"
    ):
        WriteWebdataset().schema(SCHEMA.remove(SCHEMA.get_field_index("image")))
    odd = made(tmp_path / "odd", [{**row(0), "format": "XBM"}])
    with pytest.raises(VlpipeError, match="unknown format 'XBM'; known: JPEG, PNG"):
        export(tmp_path / "odd", odd)
    empty = made(tmp_path / "none", [{**row(0), "image": None}])
    with pytest.raises(VlpipeError, match="has no image; an earlier step must reject such rows"):
        export(tmp_path / "none", empty)
    dotted = made(tmp_path / "dotted", [{**row(n), "id": f"cat.{n}"} for n in range(2)])
    with pytest.raises(VlpipeError, match=r"row cat\.0: its id has a dot, at which webdataset ends the key"):
        export(tmp_path / "dotted", dotted)


def test_there_and_back(tmp_path: Path) -> None:
    rows = [row(n) for n in range(10)]
    got = export(tmp_path, made(tmp_path, rows))
    stage = FromWebdataset(folder=File(path=str(got.artifacts)))
    back = run_map(stage, pa.concat_tables(stage.rows()))
    assert not back.rejects
    for name in ("url", "texts", "sha256", "format", "width", "height", "image"):
        assert back.table[name].to_pylist() == [one[name] for one in rows]


def test_the_webdataset_library_reads_them(tmp_path: Path) -> None:
    import webdataset as wds

    rows = [row(n) for n in range(10)]
    got = export(tmp_path, made(tmp_path, rows))
    tars = sorted(map(str, got.artifacts.glob("*.tar")))
    found = list(wds.WebDataset(tars, shardshuffle=False))
    assert [(one["__key__"], one["txt"], one[ENDINGS[n % 4]]) for n, one in enumerate(found)] == [
        (one["id"], one["texts"][0]["text"].encode(), one["image"]) for one in rows
    ]


def test_all_texts_come_back_as_as_many_texts(tmp_path: Path) -> None:
    texts = [["one", "two\nlines", " spaces  inside "], ["alone"], ["alone\nin two lines"]]
    rows = [row(n, [text(one, "human") for one in these]) for n, these in enumerate(texts)]
    export(tmp_path, made(tmp_path / "in", rows), texts="all")
    folder = next(path.parent for path in tmp_path.rglob("000000.tar"))
    stage = FromWebdataset(folder=File(path=str(folder)), text_source="human")
    back = run_map(stage, pa.concat_tables(stage.rows())).table
    assert [[one["text"] for one in these] for these in back["texts"].to_pylist()] == texts


def test_a_key_per_source_for_open_clip(tmp_path: Path) -> None:
    """`--json-text-key 'caption_web;caption_synth'` reads these."""
    got = export(tmp_path, made(tmp_path, [row(0, TEXTS)]), texts="all", source_keys=True)
    (about,) = [
        json.loads(body)
        for name, body in members(got.artifacts / "000000.tar").items()
        if name.endswith(".json")
    ]
    assert (about["caption_web"], about["caption_synth"]) == ("low", "two\nlines")
    assert "caption_human" not in about
