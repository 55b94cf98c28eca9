"""A dataset folder is read back by `datasets`, with pictures, and its card by `huggingface_hub`."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.export import card, huggingface
from vlpipe.stages.export.huggingface import WRITTEN, WriteHuggingFace

SCHEMA = pa.schema([*LISTED, *IMAGE_FIELDS, ("clip_score", pa.list_(pa.float32())), ("area", pa.float64())])


def row(n: int, texts: list[dict[str, Any]] | None = None, host: str = "a.test") -> dict[str, Any]:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(n).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, ("JPEG", "PNG")[n % 2])
    return {
        "id": hashlib.sha256(str(n).encode()).hexdigest(),
        "url": f"http://www.{host}/{n}",
        "texts": [text(f"picture {n}", "web", score=0.5, kept=True)] if texts is None else texts,
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "format": ("JPEG", "PNG")[n % 2],
        "width": 8,
        "height": 6,
        "image": buffer.getvalue(),
        "clip_score": [0.1],
        "area": 48.0,
    }


def made(folder: Path, rows: list[dict[str, Any]], name: str = "input", shard_rows: int = 4) -> Dataset:
    return dataset(folder, pa.Table.from_pylist(rows, SCHEMA), name, shard_rows)


def export(folder: Path, *data: Dataset, **more: Any) -> GatherOutput:
    stage = WriteHuggingFace(**more)
    assert stage.schema(data[0].schema) == WRITTEN
    return run_gather(stage, data, folder)


def loaded(got: GatherOutput, cache: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(got.artifacts), split="train", cache_dir=str(cache))


def test_datasets_reads_pictures_and_captions(tmp_path: Path) -> None:
    rows = [row(n) for n in range(10)]
    got = export(tmp_path, made(tmp_path, rows))
    names = [f"data/train-{k:05d}-of-00003.parquet" for k in range(3)]
    assert got.table["file"].to_pylist() == names
    assert got.table["num_rows"].to_pylist() == [4, 4, 2]
    assert [hashlib.sha256((got.artifacts / name).read_bytes()).hexdigest() for name in names] == got.table[
        "sha256"
    ].to_pylist()
    found = loaded(got, tmp_path / "cache")
    assert isinstance(found.features["image"], datasets.Image)
    assert found.column_names == [
        "image",
        "caption",
        "caption_source",
        "caption_score",
        *("id", "url", "sha256", "format", "width", "height", "area"),
    ]
    for one, wanted in zip(found, rows, strict=True):
        assert np.array_equal(np.asarray(one["image"]), np.asarray(Image.open(io.BytesIO(wanted["image"]))))
        assert (one["caption"], one["caption_source"], one["caption_score"]) == (
            wanted["texts"][0]["text"],
            "web",
            0.5,
        )
        assert (one["id"], one["area"]) == (wanted["id"], 48.0)


def test_files_are_written_as_datasets_does(tmp_path: Path) -> None:
    got = export(tmp_path, made(tmp_path, [row(n) for n in range(4)]))
    about = pq.read_metadata(got.artifacts / "data/train-00000-of-00001.parquet")
    assert json.loads(about.metadata[b"content_defined_chunking"]) == datasets.config.DEFAULT_CDC_OPTIONS
    column = about.row_group(0).column(about.schema.names.index("id"))
    assert column.has_column_index
    assert column.has_offset_index
    assert column.statistics.min == min(row(n)["id"] for n in range(4))


def test_row_groups_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(n) for n in range(6)]
    sizes = [len(one["image"]) for one in rows]
    monkeypatch.setattr(huggingface, "MAX_GROUP_BYTES", max(sizes) * 2)
    got = export(tmp_path, made(tmp_path, rows, shard_rows=6))
    about = pq.read_metadata(got.artifacts / "data/train-00000-of-00001.parquet")
    ends = np.cumsum([about.row_group(k).num_rows for k in range(about.num_row_groups)])
    assert ends[-1] == 6
    assert about.num_row_groups >= 3
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        assert sum(sizes[start:end]) <= max(sizes) * 2


TEXTS = [
    text("low", "web", score=0.2, kept=True),
    text("no", "web", score=0.99, kept=False, why="low_score"),
    text("made", "synth", score=0.9, kept=True),
]


def test_which_texts(tmp_path: Path) -> None:
    every = loaded(export(tmp_path / "a", made(tmp_path, [row(0, TEXTS)]), texts="all"), tmp_path / "every")
    assert every[0]["captions"] == ["low", "made"]
    assert every[0]["captions_source"] == ["web", "synth"]
    assert every[0]["captions_score"] == pytest.approx([0.2, 0.9])
    best = loaded(export(tmp_path / "b", made(tmp_path, [row(0, TEXTS)])), tmp_path / "best")
    assert best[0]["caption"] == "made"
    rows = [row(0, TEXTS), row(1, []), row(2)]
    got = export(tmp_path / "c", made(tmp_path, rows), sources=("synth",))
    assert got.rejects == [
        Reject(rows[n]["id"], "filtered", "no_text_kept", "no text of synth") for n in (1, 2)
    ]
    assert len(loaded(got, tmp_path / "cache")) == 1


def test_the_card_counts_what_was_written(tmp_path: Path) -> None:
    rows = [row(n, TEXTS, host="b.test" if n < 3 else "a|b.test") for n in range(5)]
    earlier = made(tmp_path / "e", [row(n) for n in range(9)], "images")
    got = export(
        tmp_path,
        made(tmp_path, rows),
        earlier,
        texts="all",
        title="Pairs",
        license="cc-by-4.0",
        language=("en",),
        limits=("Only shapes.",),
        description="Made for a test.",
    )
    said = DatasetCard.load(str(got.artifacts / "README.md"))
    assert (said.data.pretty_name, said.data.license, said.data.language) == ("Pairs", "cc-by-4.0", ["en"])
    assert said.data.size_categories == ["n<1K"]
    for line in (
        "5 images with 10 texts.",
        "| images | 9 |",
        "| this dataset | 5 |",
        "| synth | 5 | 50.0% |",
        "| b.test | 3 | 60.0% |",
        "| a\\|b.test | 2 | 40.0% |",
        "| JPEG | 3 | 60.0% |",
        "- Only shapes.",
        "Made for a test.",
    ):
        assert line in said.text.split("\n"), line


def test_rare_hosts_are_let_go_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "MAX_HOSTS", 4)
    counts = card.Counts()
    hosts = {f"h{n}.test": n for n in range(1, 6)}
    part = {"num_rows": 15, "others": 0, "texts": {"web": 15}, "formats": {"PNG": 15}, "hosts": hosts}
    counts.add(part)
    assert counts.hosts == {"h5.test": 5, "h4.test": 4}
    assert counts.others == 6
    more = {"title": "T", "description": "", "license": "", "language": (), "limits": (), "split": "train"}
    said = card.card(counts, {}, **more)  # type: ignore[arg-type]
    assert "6 images are from 0 or more other hosts. Counts of hosts are lower bounds." in said
    assert card.host("not a url") == card.host("http://[") == card.host(None) == "no host"
    assert card.host("https://WWW.Example.org:80/x") == "example.org"


def test_the_same_rows_give_the_same_bytes_and_a_killed_run_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = made(tmp_path, [row(n) for n in range(8)])
    fresh = export(tmp_path / "a", data)
    real = huggingface.sha256_file
    calls: list[str] = []

    def dies_once(path: str) -> str:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(huggingface, "sha256_file", dies_once)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "b", data)
    for folder in (tmp_path / "b/artifacts").iterdir():
        for file in [*folder.iterdir()]:
            file.unlink()
        folder.rmdir()
    again = export(tmp_path / "b", data)
    assert len(calls) == 3  # the second file again, not the first
    files = [path.relative_to(fresh.artifacts) for path in fresh.artifacts.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert [(again.artifacts / f).read_bytes() for f in files] == [
        (fresh.artifacts / f).read_bytes() for f in files
    ]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="split"):
        TypeAdapter(WriteHuggingFace).validate_python({"split": "../../train"})
    with pytest.raises(SchemaError, match="texts"):
        WriteHuggingFace().schema(pa.schema([("id", pa.string()), ("url", pa.string())]))
    with pytest.raises(VlpipeError, match="unknown format 'XYZ'"):
        export(tmp_path / "a", made(tmp_path / "a", [{**row(0), "format": "XYZ"}]))
    with pytest.raises(VlpipeError, match="has no image"):
        export(tmp_path / "b", made(tmp_path / "b", [{**row(0), "image": None}]))
