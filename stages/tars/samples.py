"""Image rows from folders that other tools wrote: samples with the position of their bytes, and the base stage."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import SourceStage, Work
from vlpipe.stages.common.pixels import MAX_FRAMES, MAX_PIXELS, Damaged
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, ListIds
from vlpipe.stages.images.check import Rules
from vlpipe.stages.images.image_rows import ImageRows
from vlpipe.stages.lists.readers import BATCH_ROWS
from vlpipe.stages.lists.text_limit import TextLimit, text_lists
from vlpipe.stages.tars import tar_members

# The image before the tool resized and re-encoded it. `sha256` in IMAGE_FIELDS is of the stored bytes.
ORIGINAL = (
    pa.field("original_sha256", pa.string()),
    pa.field("original_width", pa.int32()),
    pa.field("original_height", pa.int32()),
)
PLACE = (
    pa.field("part", pa.string()),  # file in the folder
    pa.field("place", pa.int64()),  # row of a Parquet file, or first byte in a tar; null: no image
    pa.field("num_bytes", pa.int64()),
    pa.field("why", pa.string()),  # if set, the row is rejected with this code
    pa.field("detail", pa.string()),
)
FOUND = pa.schema([*LISTED, *PLACE, *ORIGINAL])
IMAGES = pa.schema([*LISTED, *ORIGINAL, *IMAGE_FIELDS])


class Sample(NamedTuple):
    """One row of the folder: its URL, its texts (`spoken`), and the values of PLACE and ORIGINAL."""

    url: str
    spoken: tuple[str, ...]
    part: str
    place: int | None = None
    num_bytes: int | None = None
    why: str | None = None
    detail: str | None = None
    original_sha256: str | None = None
    original_width: int | None = None
    original_height: int | None = None


@dataclass(frozen=True, kw_only=True)
class SampleFolder(SourceStage):
    """Base class of stages that read a folder of another tool; subclasses define `samples`.

    damaged: whether JPEGs with pixels missing or wrong are rejected, or kept if a decoder gets to their end.
    text_limit: the maximum length of a text.
    """

    NAME: ClassVar[str] = "ingest.samples:SampleFolder"
    MAX_REJECT_RATE: ClassVar[float] = 0.9  # link rot

    folder: File
    source: str
    text_source: Literal["web", "human"] = "web"
    text_limit: TextLimit = field(default_factory=TextLimit)
    max_pixels: Annotated[int, Field(ge=1)] = MAX_PIXELS
    max_frames: Annotated[int, Field(ge=1)] = MAX_FRAMES
    damaged: Damaged = "reject"

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """Yields all samples, file by file, in order of file name."""

    def images(self) -> Images:
        """Returns what reads the images at the places of `samples`."""
        return Images(Path(self.folder.path))

    def row_schema(self) -> pa.Schema:
        return FOUND

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return IMAGES

    def rows(self) -> Iterator[pa.Table]:
        ids, found = ListIds(self.source), self.samples()
        while batch := list(islice(found, BATCH_ROWS)):
            rest = Sample._fields[2:]
            columns: dict[str, Any] = {name: [getattr(one, name) for one in batch] for name in rest}
            columns["url"] = [one.url for one in batch]
            columns["id"] = ids.of(columns["url"], ["\n".join(one.spoken) for one in batch])
            columns["texts"] = text_lists([one.spoken for one in batch], self.text_source, self.text_limit)
            yield pa.table({name: columns[name] for name in FOUND.names}, schema=FOUND)

    @contextmanager
    def open(self) -> Iterator[Work]:
        images = self.images()
        rules = Rules(max_pixels=self.max_pixels, max_frames=self.max_frames, damaged=self.damaged)

        def work(batch: pa.Table) -> Out:
            rows = ImageRows(batch, rules)
            for row, one in enumerate(batch.select([f.name for f in (*PLACE, *ORIGINAL)]).to_pylist()):
                data = None if one["why"] else images.read(one["part"], one["place"], one["num_bytes"])
                if data is None:
                    rows.reject(row, RowFault(one["why"] or "missing_image", one["detail"] or ""))
                else:
                    rows.add(row, data, **{f.name: one[f.name] for f in ORIGINAL})
            return rows.out(IMAGES)

        yield work


def files_in(folder: Path) -> list[Path]:
    """Returns the entries of a folder in order of name. Raises VlpipeError if it does not exist."""
    if not folder.is_dir():
        raise VlpipeError(f"there is no folder {folder}")
    return sorted(folder.iterdir())


def caption(value: Any) -> tuple[str, ...]:
    """Returns the texts of a field, which is one text or a list; null, NaN and empty texts are left out, a number is a text.

    Raises RowFault (bad_text) for other types, and for text that is not valid Unicode.
    """
    values = value if isinstance(value, list) else [value]
    return tuple(found for found in map(_one_text, values) if found)


def _one_text(value: Any) -> str:
    if value is None or value != value:  # NaN, as pandas writes null
        return ""
    try:
        found = value.decode("utf-8") if isinstance(value, bytes) else value
        if isinstance(found, int | float) and not isinstance(found, bool):
            return str(found)
        if not isinstance(found, str):
            raise RowFault("bad_text", f"the caption must be text, but is {type(found).__name__}")
        found.encode("utf-8")  # JSON may contain unpaired surrogates
    except UnicodeDecodeError as error:
        raise RowFault(
            "bad_text", f"the caption is not UTF-8: {error.reason} at byte {error.start + 1}"
        ) from error
    except UnicodeEncodeError as error:
        raise RowFault("bad_text", "the caption has an unpaired surrogate (half a character)") from error
    return found


def image_column(names: Sequence[str]) -> str | None:
    """Returns the name of the image column, which img2dataset names after its encoding (jpg, png, webp), or None."""
    return next((name for name in ("jpg", "png", "webp") if name in names), None)


class Images:
    """Reads images by position; caches the last Parquet row group, because rows are read in order.

    column: of the images in Parquet files, bytes or structs with the field `bytes`; None: that of img2dataset.
    """

    def __init__(self, folder: Path, column: str | None = None) -> None:
        self._folder, self._column = folder, column
        self._part = ""
        self._starts: list[int] = []  # first row of each row group of that part
        self._group = -1
        self._values = pa.chunked_array([], pa.binary())

    def read(self, part: str, place: int, num_bytes: int | None) -> bytes | None:
        """Returns the image at a PLACE, or None if the tool wrote null. num_bytes: None if `part` is a Parquet file."""
        if num_bytes is not None:
            return tar_members.read_span(self._folder / part, tar_members.Span(place, num_bytes))
        path = self._folder / part
        if part != self._part:
            metadata = pq.read_metadata(path)
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            self._part, self._starts, self._group = part, [0, *accumulate(sizes)], -1
        group = bisect_right(self._starts, place) - 1
        if group != self._group:
            with pq.ParquetFile(path) as file:
                column = self._column or image_column(file.schema_arrow.names)
                is_struct = column in file.schema_arrow.names and pa.types.is_struct(
                    file.schema_arrow.field(column).type
                )
                values = file.read_row_group(group, columns=[f"{column}.bytes" if is_struct else column])[
                    column
                ]
                self._group, self._values = group, pc.struct_field(values, "bytes") if is_struct else values
        data: bytes | None = self._values[place - self._starts[group]].as_py()
        return data
