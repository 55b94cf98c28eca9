"""Pairs of images and captions with the same words in another order, as Winoground has them: two rows per pair.

https://huggingface.co/datasets/facebook/winoground: JSON lines {id, image_0, image_1, caption_0, caption_1, tag,
secondary_tag, collapsed_tag, num_main_preds} and images, or the same columns in Parquet files that hold the images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import RowFault, VlpipeError, shown
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.storage.text_lines import BadLine
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, with_column
from vlpipe.stages.lists.list import list_files, text_of
from vlpipe.stages.lists.readers import read_rows

PAIR = pa.struct(
    [
        ("id", pa.string()),
        ("side", pa.int8()),  # 0 or 1: which of the pair's images this is, and which caption is right
        ("captions", pa.list_(pa.string())),  # both
        ("tag", pa.string()),
    ]
)
SIDES = (0, 1)
SUFFIX = ".png"  # of image files that the list names without one, as the published list does
READ_ROWS = 16  # of a Parquet file at a time, with their images


@dataclass(frozen=True, kw_only=True)
class WinogroundPairs(FolderSource):
    """The images of pairs, each with its caption in `texts` and with both captions in the column `pair`.

    examples: the JSON lines (examples.jsonl); images: the folder of their files. Without `examples`, images is a folder of
    Parquet files, such as `data` of the published set. tag: the field by which results are also told apart, such as
    `collapsed_tag`.
    """

    examples: ListFile | None = None
    tag: str | None = None
    source: str = "winoground"

    NAME: ClassVar[str] = "lists.winoground:WinogroundPairs"
    VERSION: ClassVar[int] = FolderSource.VERSION
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("pair", PAIR),)

    def rows(self) -> Iterator[pa.Table]:
        path = self.images.path if self.examples is None else self.examples.path
        sides = list(read_sides(path, self.tag, in_parquet=self.examples is None))
        listed = (Captioned(name, [pair["captions"][pair["side"]]]) for name, pair in sides)
        tables = captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit)
        yield from with_column(tables, self.MORE[0], (pair for _, pair in sides))

    def read_all(self, root: str, names: Sequence[str]) -> Iterator[bytes | RowFault]:
        if self.examples is not None:
            return super().read_all(root, names)
        return _embedded(root, names)


def read_sides(path: str, tag: str | None, *, in_parquet: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name of the image, PAIR), two for each pair. path: JSON lines, or a folder of Parquet files (`in_parquet`),
    whose images are named FILE#ROW#SIDE. Raises VlpipeError with the place of what is wrong."""
    fields = ["id", *(f"caption_{side}" for side in SIDES), *([tag] if tag else [])]
    fields += [] if in_parquet else [f"image_{side}" for side in SIDES]
    seen: set[str] = set()
    for file in list_files(path, (".parquet",) if in_parquet else (".jsonl", ".json")):
        for number, (where, row) in enumerate(read_rows(file, {name: name for name in fields})):
            if isinstance(row, BadLine):
                raise row
            found = {key: text_of(value, where).strip() for key, value in row.items()}
            if empty := [key for key in found if not found[key] and key != tag]:
                raise VlpipeError(f"{where}: {empty[0]!r} is empty")
            if found["id"] in seen:
                raise VlpipeError(f"{where}: an earlier pair has the id {shown(found['id'])}")
            seen.add(found["id"])
            captions = [found[f"caption_{side}"] for side in SIDES]
            for side in SIDES:
                name = f"{file.name}#{number}#{side}" if in_parquet else found[f"image_{side}"]
                if not in_parquet and not os.path.splitext(name)[1]:
                    name += SUFFIX
                yield (
                    name,
                    {"id": found["id"], "side": side, "captions": captions, "tag": found.get(tag or "")},
                )


def _embedded(root: str, names: Sequence[str]) -> Iterator[bytes | RowFault]:
    """Yields the images FILE#ROW#SIDE of Parquet files; RowFault no_file if one is missing or not bytes."""
    rows: dict[str, set[int]] = {}
    for name in names:
        file, row, _ = name.rsplit("#", 2)
        rows.setdefault(file, set()).add(int(row))
    found: dict[str, bytes] = {}
    for file, numbers in rows.items():
        found |= _images(Path(root, file), numbers)
    for name in names:
        yield found[name] if name in found else RowFault("no_file", f"{name} holds no image")


def _images(file: Path, numbers: set[int]) -> Mapping[str, bytes]:
    """Returns FILE#ROW#SIDE -> image of these rows. Reads only the row groups that have some of them."""
    found: dict[str, bytes] = {}
    columns = [f"image_{side}" for side in SIDES]
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
            start = 0
            for group in range(parquet.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                if not numbers.isdisjoint(range(start, end)):
                    for batch in parquet.iter_batches(READ_ROWS, row_groups=[group], columns=columns):
                        for row, values in enumerate(batch.to_pylist(), start):
                            for side in SIDES if row in numbers else ():
                                value = values.get(columns[side])
                                data = value.get("bytes") if isinstance(value, dict) else None
                                if isinstance(data, bytes):
                                    found[f"{file.name}#{row}#{side}"] = data
                        start += batch.num_rows
                start = end
    except (OSError, pa.ArrowInvalid) as error:
        raise VlpipeError(f"{file} is not a readable Parquet file: {error}") from error
    return found
