"""Read a folder that img2dataset wrote (parquet or webdataset), or a folder of other tools' webdataset tars.

Rows that failed there come out as rejects with their error; a row it calls a success but did not write, too.
https://github.com/rom1504/img2dataset, columns of version 1.47.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import File, SourceStage, Work
from vlpipe.stages.ingest import tars
from vlpipe.stages.ingest.image_rows import ImageRows
from vlpipe.stages.ingest.list import BATCH_ROWS
from vlpipe.stages.pixels import MAX_FRAMES, MAX_PIXELS
from vlpipe.stages.row import IMAGE_FIELDS, LISTED, RowIds, text

# What img2dataset saw, before it resized and encoded again; `sha256` in IMAGE_FIELDS is of the bytes we hold.
ORIGINAL = (
    pa.field("original_sha256", pa.string()),
    pa.field("original_width", pa.int32()),
    pa.field("original_height", pa.int32()),
)
PLACE = (
    pa.field("part", pa.string()),  # file in the folder
    pa.field("place", pa.int64()),  # row of a Parquet file, first byte in a tar; null: there is no image
    pa.field("num_bytes", pa.int64()),
    pa.field("why", pa.string()),  # set: the row is a reject
    pa.field("detail", pa.string()),
)
FOUND = pa.schema([*LISTED, *PLACE, *ORIGINAL])
IMAGES = pa.schema([*LISTED, *ORIGINAL, *IMAGE_FIELDS])


class Sample(NamedTuple):
    """One row of the folder: what it is, and where its bytes are."""

    url: str
    text: str
    part: str
    place: int | None = None
    num_bytes: int | None = None
    why: str | None = None
    detail: str | None = None
    original_sha256: str | None = None
    original_width: int | None = None
    original_height: int | None = None


@dataclass(frozen=True, kw_only=True)
class FromImg2dataset(SourceStage):
    """folder: `output_folder` of img2dataset with output_format parquet or webdataset.

    Codes: http_<status>, failed_to_download, failed_to_resize, missing_image, no_image, bad_text, and those
    of `stages.pixels`.
    """

    MAX_REJECT_RATE: ClassVar[float] = 0.9  # link rot

    folder: File
    source: str = "img2dataset"
    text_source: Literal["web", "human"] = "web"
    max_pixels: Annotated[int, Field(ge=1)] = MAX_PIXELS
    max_frames: Annotated[int, Field(ge=1)] = MAX_FRAMES

    def row_schema(self) -> pa.Schema:
        return FOUND

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return IMAGES

    def rows(self) -> Iterator[pa.Table]:
        ids, found = RowIds(self.source), find_samples(Path(self.folder.path))
        while batch := list(islice(found, BATCH_ROWS)):
            columns: dict[str, Any] = {name: [getattr(one, name) for one in batch] for name in Sample._fields}
            columns["id"] = [ids.next(one.url, one.text) for one in batch]
            columns["texts"] = [[text(one.text, self.text_source)] if one.text else [] for one in batch]
            yield pa.table({name: columns[name] for name in FOUND.names}, schema=FOUND)

    @contextmanager
    def open(self) -> Iterator[Work]:
        images = Images(Path(self.folder.path))

        def work(batch: pa.Table) -> Out:
            rows = ImageRows(batch, self.max_pixels, self.max_frames)
            for row, one in enumerate(batch.select([f.name for f in (*PLACE, *ORIGINAL)]).to_pylist()):
                data = None if one["why"] else images.read(one["part"], one["place"], one["num_bytes"])
                if data is None:
                    rows.reject(row, RowFault(one["why"] or "missing_image", one["detail"] or ""))
                else:
                    rows.add(row, data, **{f.name: one[f.name] for f in ORIGINAL})
            return rows.out(IMAGES)

        yield work


def find_samples(folder: Path) -> Iterator[Sample]:
    """All samples, part by part, in order of name."""
    if not folder.is_dir():
        raise VlpipeError(f"there is no folder {folder}")
    files = {path.name for path in folder.iterdir()}
    parts = sorted({Path(name).stem for name in files if name.endswith((".parquet", ".tar"))})
    if not parts:
        raise VlpipeError(
            f"folder {folder} has neither .parquet nor .tar files, so img2dataset did not write it"
        )
    for part in parts:
        parquet, tar = folder / f"{part}.parquet", folder / f"{part}.tar"
        if parquet.name not in files:
            yield from _samples_of_tar(tar)
        else:
            yield from _samples_of_parquet(parquet, tar if tar.name in files else None)


def _samples_of_tar(path: Path) -> Iterator[Sample]:
    """A tar without img2dataset's Parquet file beside it: the caption is in KEY.txt or in KEY.json."""
    for key, members in tars.samples(path).items():
        where = f"{path} sample {key}"
        about = tars.read_json(path, members["json"], where) if "json" in members else {}
        caption: Any = tars.read_span(path, members["txt"]) if "txt" in members else about.get("caption")
        spoken, fault = _utf8(caption)
        span = tars.image_span(members)
        if span is None:
            fault = ("no_image", f"only {', '.join(sorted(members))}")
        place, num_bytes = span or (None, None)
        yield Sample(
            str(about.get("url") or f"{path.name}/{key}"), spoken, path.name, place, num_bytes, *fault
        )


def _samples_of_parquet(path: Path, tar: Path | None) -> Iterator[Sample]:
    """The Parquet file has every row that was tried; the images are in it, or in the tar of the same name."""
    members = tars.samples(tar) if tar else {}
    names = _columns(path, with_images=tar is None)
    listed: set[str] = set()
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            for row in batch.to_pylist():
                listed.add(row["key"])
                where = (tar.name, members.get(row["key"], {})) if tar else None
                yield _sample(path.name, number, row, where)
                number += 1
    if strays := [key for key in members if key not in listed]:
        raise VlpipeError(
            f"{tar} has {len(strays)} sample(s) that {path.name} does not list, such as {strays[0]}"
        )


def _sample(
    part: str, number: int, row: Mapping[str, Any], tar: tuple[str, Mapping[str, tars.Span]] | None
) -> Sample:
    spoken, fault = _utf8(row.get("caption"))
    place: int | None = number
    num_bytes: int | None = None
    if tar is not None:
        part, members = tar
        place, num_bytes = tars.image_span(members) or (None, None)
    if row["status"] != "success":
        fault = _why(row["status"], row.get("error_message") or "")
    elif place is None:
        fault = ("missing_image", f"img2dataset calls it a success, but it is not in {part}")
    original = (row.get(name) for name in ("sha256", "original_width", "original_height"))
    return Sample(row["url"] or "", spoken, part, place, num_bytes, *fault, *original)


def _columns(path: Path, *, with_images: bool) -> list[str]:
    """The light columns to read, after a look at whether this is img2dataset's."""
    try:
        there = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise VlpipeError(f"{path} is cut short, or no Parquet file: {error}") from error
    missing = [name for name in ("url", "key", "status") if name not in there]
    if missing:
        raise VlpipeError(f"{path} has no column(s) {', '.join(missing)}, so img2dataset did not write it")
    if with_images and image_column(there) is None:
        raise VlpipeError(f"{path} has no image column, and there is no {path.stem}.tar beside it")
    light = (
        "url",
        "caption",
        "key",
        "status",
        "error_message",
        "sha256",
        "original_width",
        "original_height",
    )
    return [name for name in light if name in there]


def image_column(names: Sequence[str]) -> str | None:
    """img2dataset names it after the encoding."""
    return next((name for name in ("jpg", "png", "webp") if name in names), None)


def _why(status: str, message: str) -> tuple[str, str]:
    http = re.match(r"HTTP Error (\d{3})", message)
    return (f"http_{http[1]}" if http else status or "failed", message)


def _utf8(caption: Any) -> tuple[str, tuple[str | None, str | None]]:
    """The caption, and a fault when it is no text: one bad byte makes the column of a whole shard binary."""
    if not isinstance(caption, bytes):
        return ("" if caption is None else str(caption)), (None, None)
    try:
        return caption.decode("utf-8"), (None, None)
    except UnicodeDecodeError as error:
        return caption.decode("latin-1"), ("bad_text", f"not UTF-8: {error.reason} at byte {error.start + 1}")


class Images:
    """Reads images by place; keeps the last Parquet row group, because rows come in order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._part = ""
        self._starts: list[int] = []  # first row of each row group of that part
        self._group = -1
        self._values = pa.chunked_array([], pa.binary())

    def read(self, part: str, place: int, num_bytes: int | None) -> bytes | None:
        """The image; None where img2dataset wrote a null."""
        if num_bytes is not None:
            return tars.read_span(self._folder / part, tars.Span(place, num_bytes))
        path = self._folder / part
        if part != self._part:
            metadata = pq.read_metadata(path)
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            self._part, self._starts, self._group = part, [0, *accumulate(sizes)], -1
        group = bisect_right(self._starts, place) - 1
        if group != self._group:
            with pq.ParquetFile(path) as file:
                column = image_column(file.schema_arrow.names)
                self._group, self._values = group, file.read_row_group(group, columns=[column]).column(0)
        data: bytes | None = self._values[place - self._starts[group]].as_py()
        return data
