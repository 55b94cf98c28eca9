"""Image rows from files in a folder: the base of the stages that read human-captioned datasets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, ClassVar, NamedTuple

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import SourceStage, Work
from vlpipe.stages.common.loopback import inside, leads_out
from vlpipe.stages.common.pixels import MAX_FRAMES, MAX_PIXELS, Damaged
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, ListIds
from vlpipe.stages.images.check import Rules
from vlpipe.stages.images.image_rows import ImageRows
from vlpipe.stages.lists.list import text_of
from vlpipe.stages.lists.readers import BATCH_ROWS
from vlpipe.stages.lists.text_limit import TextLimit, text_lists

IMAGES = pa.schema([*LISTED, *IMAGE_FIELDS])


class Captioned(NamedTuple):
    """An image with its captions, in order. url: its URL or file name."""

    url: str
    captions: Sequence[str]


def captioned_rows(
    images: Iterable[Captioned], *, source: str, text_source: str, limit: TextLimit
) -> Iterator[pa.Table]:
    """Yields rows of schema LISTED, one per image with all its captions. Ids are computed from whole captions."""
    ids, rest = ListIds(source), iter(images)
    while batch := list(islice(rest, BATCH_ROWS)):
        urls = [url for url, _ in batch]
        yield pa.table(
            {
                "id": ids.of(urls, ["\n".join(captions) for _, captions in batch]),
                "url": urls,
                "texts": text_lists([captions for _, captions in batch], text_source, limit),
            },
            schema=LISTED,
        )


def with_column(tables: Iterable[pa.Table], column: pa.Field, values: Iterable[Any]) -> Iterator[pa.Table]:
    """Yields the tables with one more column. values: of all their rows, in order."""
    rest = iter(values)
    for table in tables:
        yield table.append_column(column, pa.array(list(islice(rest, table.num_rows)), column.type))


@dataclass(frozen=True, kw_only=True)
class FolderSource(SourceStage):
    """Base class of stages that read images from files: `url` is the path of a file below the folder `images`.

    damaged: whether JPEGs with pixels missing or wrong are rejected, or kept if a decoder gets to their end.
    text_limit: the maximum length of a caption. MORE: further columns of its list.
    Codes: no_file, bad_path, and those of `common.pixels`.
    """

    NAME: ClassVar[str] = "ingest.folder:FolderSource"
    # 2: rejects transparent images, JPEGs with too many scans; 3: rejects damaged JPEGs, accepts ICO, names formats
    VERSION: ClassVar[int] = 3
    MORE: ClassVar[tuple[pa.Field, ...]] = ()

    images: File
    max_pixels: Annotated[int, Field(ge=1)] = MAX_PIXELS
    max_frames: Annotated[int, Field(ge=1)] = MAX_FRAMES
    damaged: Damaged = "reject"
    text_limit: TextLimit = field(default_factory=TextLimit)

    def row_schema(self) -> pa.Schema:
        return pa.schema([*LISTED, *self.MORE])

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([*IMAGES, *self.MORE])

    @contextmanager
    def open(self) -> Iterator[Work]:
        root = os.path.realpath(self.images.path)
        if not os.path.isdir(root):
            raise VlpipeError(f"`images` must be a folder, but there is no folder {self.images.path}")

        rules = Rules(max_pixels=self.max_pixels, max_frames=self.max_frames, damaged=self.damaged)

        def work(batch: pa.Table) -> Out:
            rows = ImageRows(batch, rules)
            more = {field.name: batch[field.name].to_pylist() for field in self.MORE}
            images: list[tuple[int, bytes, dict[str, Any]]] = []
            # Read all files, then decode all: reading and decoding one image at a time takes a sixth longer.
            for row, data in enumerate(self.read_all(root, batch["url"].to_pylist())):
                if isinstance(data, RowFault):
                    rows.reject(row, data)
                else:
                    images.append((row, data, {column: values[row] for column, values in more.items()}))
            rows.add_all(images)
            return rows.out(self.schema(batch.schema))

        yield work

    def read_all(self, root: str, names: Sequence[str]) -> Iterator[bytes | RowFault]:
        """Yields the content of each file below the folder `root`, or why there is none."""
        for name in names:
            try:
                yield read_inside(root, name)
            except RowFault as fault:
                yield fault


def read_inside(root: str, name: str) -> bytes:
    """Returns the bytes of the file `name` below the folder `root`. Raises RowFault: bad_path (not below it), no_file."""
    path = inside(root, name) if not name.startswith("/") else None
    if path is None:
        raise RowFault("bad_path", leads_out(name, "images"))
    if not os.path.isfile(path):
        raise RowFault("no_file", f"there is no file {name!r} in the folder given by `images`")
    with open(path, "rb", buffering=0) as handle:  # read at once: a buffer would only add a copy
        return handle.read()


KINDS: dict[type, str] = {str: "a string", list: "an array", dict: "an object", int: "a whole number"}


def wanted(record: Any, key: str, kind: type, where: str) -> Any:
    """Returns record[key]. Raises VlpipeError, with `where`, if `record` is not a dict or the value is not a `kind`."""
    if not isinstance(record, dict) or not isinstance(record.get(key), kind):
        got = json.dumps(record)[:80]
        raise VlpipeError(
            f"{where}: wanted a JSON object with the key {key!r} and {KINDS[kind]} as its value, got {got}"
        )
    return text_of(record[key], where) if kind is str else record[key]
