"""Read a folder that img2dataset wrote, as parquet or webdataset.

Rows that failed there come out as rejects with a code; so does a row it calls a success but did not write, and one
that it counts but lists nowhere.
https://github.com/rom1504/img2dataset, columns of version 1.47.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.lists.list import BATCH_ROWS
from vlpipe.stages.tars import tar_members
from vlpipe.stages.tars.img2dataset_errors import typed
from vlpipe.stages.tars.samples import Sample, SampleFolder, caption, files_in, image_column
from vlpipe.stages.tars.webdataset import read_tar

LIGHT = (
    "url",
    "caption",
    "key",
    "status",
    "error_message",
    "sha256",
    "original_width",
    "original_height",
)


@dataclass(frozen=True, kw_only=True)
class FromImg2dataset(SampleFolder):
    """folder: `output_folder` of img2dataset with output_format parquet or webdataset; tars without their Parquet
    files are read as `tars.webdataset` reads them.

    Codes: those of `img2dataset_errors` for what failed there; missing_image, never_written (img2dataset lost the
    row while writing it), bad_text, no_image, and those of `stages.pixels`.
    """

    NAME: ClassVar[str] = "ingest.img2dataset:FromImg2dataset"
    VERSION: ClassVar[int] = 2

    source: str = "img2dataset"

    def samples(self) -> Iterator[Sample]:
        return find_samples(Path(self.folder.path))


def find_samples(folder: Path) -> Iterator[Sample]:
    """All samples, part by part, in order of name."""
    files = {path.name for path in files_in(folder)}
    parts = sorted({Path(name).stem for name in files if name.endswith((".parquet", ".tar"))})
    if not parts:
        raise VlpipeError(
            f"folder {folder} has neither .parquet nor .tar files, so img2dataset did not write it"
        )
    for part in parts:
        parquet, tar, stats = (folder / f"{part}{end}" for end in (".parquet", ".tar", "_stats.json"))
        num_rows = 0
        if parquet.name in files:
            found = _samples_of_parquet(parquet, tar if tar.name in files else None)
        else:
            found = read_tar(tar)
        for sample in found:
            num_rows += 1
            yield sample
        if stats.name in files and parquet.name in files:
            yield from _never_written(stats, part, num_rows)


def _never_written(stats: Path, part: str, num_rows: int) -> Iterator[Sample]:
    """Rows that the statistics count and the Parquet file lacks: a value json cannot hold, a text that is not UTF-8,
    each loses its row there, and counts as a success.
    """
    try:
        count = json.loads(stats.read_bytes()).get("count", num_rows)
    except (ValueError, AttributeError) as error:
        raise VlpipeError(f"{stats} is not what img2dataset writes: {error}") from error
    if count < num_rows:
        raise VlpipeError(f"{stats} counts {count} rows, but {part}.parquet has {num_rows}: of two runs?")
    for number in range(count - num_rows):
        detail = f"{stats.name} counts {count} rows, {part}.parquet has {num_rows}"
        yield Sample(f"{part}/lost-{number}", (), part, why="never_written", detail=detail)


def _samples_of_parquet(path: Path, tar: Path | None) -> Iterator[Sample]:
    """The Parquet file has every row that was tried; the images are in it, or in the tar of the same name."""
    members = tar_members.samples(tar) if tar else {}
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
    part: str, number: int, row: Mapping[str, Any], tar: tuple[str, Mapping[str, tar_members.Span]] | None
) -> Sample:
    place: int | None = number
    num_bytes: int | None = None
    if tar is not None:
        part, members = tar
        place, num_bytes = next((members[one] for one in tar_members.image_endings(members)), (None, None))
    spoken: tuple[str, ...] = ()
    fault: tuple[str | None, str | None] = (None, None)
    try:
        spoken = caption(row.get("caption"))
        if row["status"] != "success":
            raise typed(row.get("error_message"))
        if place is None:
            raise RowFault("missing_image", f"img2dataset calls it a success, but it is not in {part}")
    except RowFault as found:
        fault = (found.why, found.detail)
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
    return [name for name in LIGHT if name in there]
