"""BLIP's JSON is read back by the reader of human captions; images keep their bytes; a killed run keeps its shards."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather, run_map
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.export.blip_json import FILE, WRITTEN, WriteBlipJson
from vlpipe.stages.lists.coco import CocoCaptions

SCHEMA = pa.schema([*LISTED, *IMAGE_FIELDS])


def row(n: int, *texts: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (40 * n, 9, 9)).save(buffer, ("JPEG", "PNG")[n % 2])
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    return {
        "id": f"{n:064x}", "url": f"http://a.test/{n}", "texts": list(texts), "sha256": digest,
        "format": ("JPEG", "PNG")[n % 2], "width": 8, "height": 6, "image": buffer.getvalue(),
    }  # fmt: skip


ROWS = [
    row(
        0,
        text("a dog", "web", score=0.5, kept=True),
        text("a \u201cdog\u201d\n<b>", "synth", score=0.9, kept=True),
    ),
    row(1, text("a cat", "web", score=0.1, kept=False)),
    row(2, text("a bird", "human")),
    row(3, text("a fish", "web", score=0.7, kept=True)),
]


def made(folder: Path, shard_rows: int = 2) -> Dataset:
    return dataset(folder, pa.Table.from_pylist(ROWS, SCHEMA), "input", shard_rows)


def export(folder: Path, **more: Any) -> GatherOutput:
    stage, data = WriteBlipJson(**more), made(folder / "in")
    assert stage.schema(data.schema) == WRITTEN
    return run_gather(stage, [data], folder / "out")


def entries(got: GatherOutput) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(got.artifacts, FILE).read_text())
    return found


def test_it_is_read_back(tmp_path: Path) -> None:
    got = export(tmp_path)
    assert [one["caption"] for one in entries(got)] == ["a dog", "a \u201cdog\u201d\n<b>", "a bird", "a fish"]
    assert [one["image_id"] for one in entries(got)] == [ROWS[k]["id"] for k in (0, 0, 2, 3)]
    assert got.rejects == [Reject(ROWS[1]["id"], "filtered", "no_text_kept", "no text")]
    about = got.table.to_pylist()[0]
    assert (about["num_rows"], about["num_captions"]) == (3, 4)
    assert about["sha256"] == hashlib.sha256(Path(got.artifacts, FILE).read_bytes()).hexdigest()
    annotations = ListFile(path=str(Path(got.artifacts, FILE)))
    stage = CocoCaptions(annotations=annotations, images=File(path=str(got.artifacts)))
    back = run_map(stage, pa.concat_tables(stage.rows()))
    assert back.rejects == []
    assert back.table["image"].to_pylist() == [ROWS[k]["image"] for k in (0, 2, 3)]
    assert [[t["text"] for t in texts] for texts in back.table["texts"].to_pylist()] == [
        ["a dog", "a \u201cdog\u201d\n<b>"], ["a bird"], ["a fish"],
    ]  # fmt: skip


def test_which_texts_and_urls_instead_of_images(tmp_path: Path) -> None:
    assert [one["caption"][:6] for one in entries(export(tmp_path / "a", texts="best"))] == [
        "a \u201cdog",
        "a bird",
        "a fish",
    ]
    got = export(tmp_path / "b", sources=("web",), images=False)
    assert entries(got)[0] == {"url": "http://a.test/0", "caption": "a dog", "image_id": ROWS[0]["id"]}
    assert [one.detail for one in got.rejects] == ["no text of web"] * 2
    assert not Path(got.artifacts, "images").exists()
    none = export(tmp_path / "c", sources=())
    assert entries(none) == []
    assert len(none.rejects) == 4


def test_ids_that_differ_in_a_slash_have_a_file_each(tmp_path: Path) -> None:
    ids = ["a/b", "a_b", "a%2Fb"]
    rows = [{**one, "id": id_} for one, id_ in zip([ROWS[0], *ROWS[2:]], ids, strict=True)]
    data = dataset(tmp_path / "in", pa.Table.from_pylist(rows, SCHEMA))
    got = run_gather(WriteBlipJson(texts="best"), [data], tmp_path / "out")
    found = {one["image_id"]: Path(got.artifacts, one["image"]).read_bytes() for one in entries(got)}
    assert found == {one["id"]: one["image"] for one in rows}


def test_other_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="image"):
        WriteBlipJson().schema(pa.schema([*LISTED, ("format", pa.string())]))
    WriteBlipJson(images=False).schema(LISTED)
