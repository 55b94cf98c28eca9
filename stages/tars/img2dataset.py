"""Reads a folder that img2dataset wrote with output format parquet or webdataset.

Rows that failed in img2dataset become rejects with a code; so do rows with status success whose image is missing, and rows
that are counted in `_stats.json` but missing in the Parquet file.
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

from vlpipe.pipeline.errors import RowFault, VlpipeError, shown
from vlpipe.stages.lists.readers import BATCH_ROWS
from vlpipe.stages.tars import tar_members
from vlpipe.stages.tars.img2dataset_errors import typed
from vlpipe.stages.tars.samples import Sample, SampleFolder, caption, files_in, image_column
from vlpipe.stages.tars.webdataset import original, read_tar

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

MAX_LOST = (
    1_000_000  # rows of a part that img2dataset counted and did not write; its parts have 10,000 by default
)


@dataclass(frozen=True, kw_only=True)
class FromImg2dataset(SampleFolder):
    """Rows of an img2dataset folder. folder: its `output_folder`, with output_format parquet or webdataset; tars without
    Parquet files are read the way `tars.webdataset` reads them.

    Reject codes: those of `img2dataset_errors` for rows whose download failed; missing_image (listed as success, but the
    tar lacks the image); never_written (img2dataset lost the row while writing it); no_image, several_images (a key of a tar
    without an image, or with several); bad_text, bad_json; and those of `common.pixels`.
    """

    NAME: ClassVar[str] = "ingest.img2dataset:FromImg2dataset"
    # 3: rejects damaged JPEGs, accepts ICO, names formats; NaN is no text; KEY.txt without BOM
    # and final line end
    VERSION: ClassVar[int] = 3

    source: str = "img2dataset"

    def samples(self) -> Iterator[Sample]:
        return find_samples(Path(self.folder.path))


def find_samples(folder: Path) -> Iterator[Sample]:
    """Yields all samples, shard by shard, in order of name. Raises VlpipeError if img2dataset did not write the folder."""
    files = {path.name for path in files_in(folder)}
    parts = sorted({Path(name).stem for name in files if name.endswith((".parquet", ".tar"))})
    if not parts:
        raise VlpipeError(
            f"the folder {folder} has neither .parquet nor .tar files; wanted an output folder of img2dataset"
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
    """Yields a Sample to reject (never_written) for each row that is counted in `stats` but missing in the Parquet file.

    img2dataset loses rows with a value that JSON cannot represent, or a text that is not UTF-8, and counts them as success.
    """
    try:
        count = json.loads(stats.read_bytes()).get("count", num_rows)
        if type(count) is not int or not 0 <= count <= num_rows + MAX_LOST:
            raise ValueError(f"`count` must be a whole number, the number of rows, but is {shown(count)}")
    except (ValueError, AttributeError, RecursionError) as error:
        raise VlpipeError(
            f"{stats} is not a statistics file of img2dataset: {error}; remove the shard, or download it again"
        ) from error
    if count < num_rows:
        raise VlpipeError(
            f"{stats} counts {count} rows, but {part}.parquet has {num_rows}, so they are of different runs; "
            "remove the shard, or download it again"
        )
    for number in range(count - num_rows):
        detail = f"{stats.name} counts {count} rows, {part}.parquet has {num_rows}"
        yield Sample(f"{part}/lost-{number}", (), part, why="never_written", detail=detail)


def _samples_of_parquet(path: Path, tar: Path | None) -> Iterator[Sample]:
    """Yields the samples of a Parquet file, which lists every attempted row; images are in it or in the tar beside it."""
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
            f"{tar} has {len(strays)} sample(s) that {path.name} does not list, such as {strays[0]}, so they are of "
            "different runs; remove the shard, or download it again"
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
            raise RowFault(
                "missing_image", f"img2dataset lists the image with status success, but it is not in {part}"
            )
    except RowFault as found:
        fault = (found.why, found.detail)
    sha256, width, height = original(_whole(row))
    return Sample(row["url"] or "", spoken, part, place, num_bytes, *fault, sha256, width, height)


def _whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row with whole numbers in place of such floats: pandas makes floats of a column with nulls."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in row.items()
    }


def _columns(path: Path, *, with_images: bool) -> list[str]:
    """Returns the columns to read, those of LIGHT that it has. Raises VlpipeError if img2dataset did not write the file."""
    try:
        there = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise VlpipeError(
            f"{path} is truncated, or not a Parquet file: {error}; remove the shard, or download it again"
        ) from error
    if twice := [name for name in LIGHT if there.count(name) > 1]:
        raise VlpipeError(f"{path} has the column {twice[0]!r} {there.count(twice[0])} times; wanted one")
    missing = [name for name in ("url", "key", "status") if name not in there]
    if missing:
        raise VlpipeError(
            f"{path} has no column(s) {', '.join(missing)}; wanted an output folder of img2dataset"
        )
    if with_images and image_column(there) is None:
        raise VlpipeError(
            f"{path} has no image column, and there is no {path.stem}.tar beside it that holds the images"
        )
    return [name for name in LIGHT if name in there]
