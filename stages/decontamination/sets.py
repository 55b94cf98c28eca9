"""Loads evaluation sets for comparison, from files or from the rows of a step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ConfigDict

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.pixels import MAX_PIXELS
from vlpipe.stages.decontamination.image_hits import Floats
from vlpipe.stages.decontamination.images import folder_images
from vlpipe.stages.decontamination.texts import read_set
from vlpipe.stages.dedup.looks import BLOCK_IMAGES, LOOK, Looks, from_arrow, joined, look_at

NORM_ERROR = 1e-3


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """An evaluation set in files; at least one of images, embeddings and texts is required.

    images: a folder, searched recursively; if `texts` names images, only these are read, and all of them must exist.
    embeddings: a Parquet file or a folder of them, with `id` and `embedding` of unit norm, by the same encoder as
    the rows' embeddings. texts: .txt (one per line); .jsonl (`text`, `caption`, `captions`, `sentence` or `question` of
    each line); .json (COCO's captions, Karpathy's dataset_coco.json and similar, VQA's questions, or a list of texts).
    split: the splits of Karpathy's JSON to use; default: [test, val], which are not used for training.
    """

    name: str
    images: File | None = None
    embeddings: File | None = None
    texts: File | None = None
    split: tuple[str, ...] | None = None

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(kw_only=True, slots=True)
class Items:
    """A loaded set. A field is None if the set or the rows do not have this kind of data."""

    name: str
    sha256: dict[str, str] | None = None  # sha256 of an image -> its name
    pictures: tuple[list[str], Looks] | None = None  # names and looks, of the same length
    vectors: tuple[list[str], Floats] | None = None  # names, (M, D)
    texts: list[tuple[str, str]] | None = None  # (name, text)
    num_unread: int = 0  # images that cannot be decoded: compared by their bytes only

    @property
    def compared(self) -> dict[str, list[str]]:
        """The kinds of comparison for "rows" and "texts", with the names used in column `how` of MATCHES."""
        kinds = {"same_bytes": self.sha256, "picture": self.pictures, "embedding": self.vectors}
        rows = [how for how, held in kinds.items() if held is not None]
        return {"rows": rows, "texts": ["same_text", "ngrams"] if self.texts is not None else []}

    def said(self) -> str:
        """Returns a line for the log: what is compared."""
        kinds = []
        if self.sha256 is not None:
            kinds.append(f"the bytes of {len(self.sha256):,} images")
        if self.pictures is not None:
            unread = f" ({self.num_unread:,} cannot be decoded)" if self.num_unread else ""
            kinds.append(f"{len(self.pictures[0]):,} pictures{unread}")
        if self.vectors is not None:
            kinds.append(f"{len(self.vectors[0]):,} embeddings")
        if self.texts is not None:
            kinds.append(f"{len(self.texts):,} texts")
        return f"{self.name}: {', '.join(kinds)}"


def from_files(spec: EvalSet, *, pictures: bool) -> Items:
    """Loads an evaluation set from files. pictures: also decode the images, to compare their looks.

    Raises VlpipeError if a file is invalid or has no text or embedding, or if no image can be decoded.
    """
    items, named = Items(name=spec.name), None
    if spec.texts is not None:
        items.texts, named = read_set(spec.texts.path, spec.split)
        if not items.texts:
            raise VlpipeError(f"evaluation set {spec.name!r}: there is no text in {spec.texts.path}")
    if spec.images is not None:
        _add_images(items, folder_images(spec.images.path, named), pictures)
        if not items.sha256 or (items.pictures and items.num_unread == len(items.pictures[0])):
            raise VlpipeError(
                f"evaluation set {spec.name!r}: there is no image that can be decoded below {spec.images.path}"
            )
    if spec.embeddings is not None:
        items.vectors = read_vectors(spec.embeddings.path)
    return items


def from_rows(data: Dataset, rows: pa.Schema, *, pictures: bool, vectors: bool) -> Items:
    """Loads a step's rows as an evaluation set, with each kind of data that the training rows (schema `rows`) also have.

    pictures, vectors: also load looks, embeddings; without them only bytes and texts are compared.

    Raises VlpipeError if the step has no rows, or no kind of data in common with the training rows.
    """
    if not data.num_rows:
        raise VlpipeError(
            f"the evaluation step {data.name!r} has no rows, so nothing can match it; check its input"
        )
    both = {n for n in ("sha256", "embedding", "texts") if n in data.schema.names and n in rows.names}
    items = Items(name=data.name)
    if pictures and _has_pictures(data.schema) and _has_pictures(rows):
        items.pictures = _row_pictures(data)
        items.num_unread = sum(code is not None for code in items.pictures[1].why)
    named = data.table(["id", "sha256"]) if "sha256" in both else None
    items.sha256 = None if named is None else _first(_pairs(named, "sha256"))
    if "embedding" in both and vectors:
        tables = list(data.batches(["id"], ["embedding"]))
        items.vectors = ([i for t in tables for i in t["id"].to_pylist()], _stack(tables, data.name))
    if "texts" in both:
        texts = _pairs(data.table(["id", "texts"]), "texts")
        items.texts = [
            (id_, text["text"]) for id_, entries in texts for text in entries or () if text["text"]
        ]
    if not (items.compared["rows"] or items.compared["texts"]):
        raise VlpipeError(
            f"the rows and the evaluation step {data.name!r} have none of sha256, image, embedding and texts in "
            "common: there is nothing to compare"
        )
    return items


def _pairs(table: pa.Table, column: str) -> Iterator[tuple[str, Any]]:
    return zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True)


def _first(named: Iterator[tuple[str, str | None]]) -> dict[str, str]:
    """Returns sha256 -> the first name with it. named: (name, sha256 or None) of each image."""
    found: dict[str, str] = {}
    for name, sha256 in named:
        if sha256 is not None:
            found.setdefault(sha256, name)
    return found


def _has_pictures(schema: pa.Schema) -> bool:
    if "looks" in schema.names:
        need(schema, "decontamination.decontaminate", looks=LOOK)
    return "looks" in schema.names or "image" in schema.names


def _row_pictures(data: Dataset) -> tuple[list[str], Looks]:
    """Returns names and looks of a step's rows; images are decoded if `looks` is missing."""
    names: list[str] = []
    looks = []
    stored = "looks" in data.schema.names
    for table in data.batches(["id", "looks"]) if stored else data.batches(["id"], ["image"]):
        names += table["id"].to_pylist()
        looks.append(from_arrow(table["looks"]) if stored else look_at(table["image"].to_pylist()))
    return names, joined(looks)


def _add_images(items: Items, images: Iterable[tuple[str, bytes]], pictures: bool) -> None:
    rest, hashes, names, looks = iter(images), [], [], []
    while block := list(islice(rest, BLOCK_IMAGES)):
        hashes += [(name, hashlib.sha256(data).hexdigest()) for name, data in block]
        if pictures:
            names += [name for name, _ in block]
            looks.append(look_at([data for _, data in block], MAX_PIXELS))
            items.num_unread += sum(code is not None for code in looks[-1].why)
    items.sha256 = _first(iter(hashes))
    if looks:
        items.pictures = (names, joined(looks))


def read_vectors(path: str) -> tuple[list[str], Floats]:
    """Returns ids and unit vectors (M, D) of a Parquet file, or of all Parquet files in a folder.

    Raises VlpipeError if there are no rows, or a file is not Parquet with `id` and `embedding` of unit norm.
    """
    root = Path(path)
    files = sorted(f for f in root.glob("*.parquet") if f.name[0] not in "._") if root.is_dir() else [root]
    tables = []
    for file in files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise VlpipeError(f"embeddings: {file} cannot be read as Parquet ({error})") from error
        need(table.schema, f"embeddings ({file})", id=pa.string())
        tables.append(table)
    if not tables or not any(t.num_rows for t in tables):
        raise VlpipeError(
            f"embeddings: there are no rows in {path}; wanted Parquet with `id` and `embedding`"
        )
    return [i for t in tables for i in t["id"].to_pylist()], _stack(tables, path)


def _stack(tables: Sequence[pa.Table], where: str) -> Floats:
    return np.concatenate([unit_vectors(t, where) for t in tables if t.num_rows])


def unit_vectors(table: pa.Table, where: str) -> Floats:
    """Returns column `embedding` as (B, D). Raises VlpipeError unless every row has one, of unit norm and equal width."""
    if "embedding" not in table.schema.names:
        raise VlpipeError(
            f"{where} has no column 'embedding'; its columns are {', '.join(table.schema.names)}"
        )
    vectors = table["embedding"].combine_chunks()
    flat = pc.list_flatten(vectors).to_numpy(zero_copy_only=False).astype(np.float32)
    lengths = set(pc.list_value_length(vectors).to_pylist())
    if len(lengths) != 1 or None in lengths:
        widths = ", ".join(sorted("none" if width is None else str(width) for width in lengths))
        raise VlpipeError(
            f"{where}: every row needs an embedding, all of the same width; the widths are {widths}"
        )
    found: Floats = flat.reshape(len(vectors), -1)
    bad = ~(np.abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1) <= NORM_ERROR)
    if bad.any():
        first = table["id"][int(np.flatnonzero(bad)[0])]
        raise VlpipeError(
            f"{where}: {bad.sum()} embedding(s) do not have unit norm (first: {first}); divide each by its norm"
        )
    return found
