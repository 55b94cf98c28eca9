"""Reads Parquet files that hold images: in structs {bytes, path}, as Hugging Face's `datasets` writes them, or as bytes.

https://huggingface.co/docs/datasets/image_dataset
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import RowFault, VlpipeError, did_you_mean
from vlpipe.stages.lists.readers import BATCH_ROWS
from vlpipe.stages.tars.samples import Images, Sample, SampleFolder, caption


@dataclass(frozen=True, kw_only=True)
class ImageParquet(SampleFolder):
    """Rows of Parquet files with images. folder: of the files, or above their folders (`data/train-00000.parquet`).

    image, caption, url: names of columns; a caption is a text or a list of texts; url: None: the path in the image's struct,
    else FILE/ROW. split: only files whose names begin with `SPLIT-`, as `datasets` names them; None: all. Files and folders
    whose names begin with . or _ are left out.
    Codes: missing_image (null, or a path without bytes), bad_text, and those of `common.pixels`.
    """

    source: str = "parquet"
    image: str = "image"
    caption: str = "caption"
    url: str | None = None
    split: str | None = None

    NAME: ClassVar[str] = "tars.image_parquet:ImageParquet"

    def preflight(self) -> list[str]:
        if self.folder.step is None and Path(self.folder.path).is_dir():
            self._columns(self._files()[0])  # raises if there is no file, or the first one is wrong
        return []

    def images(self) -> Images:
        return Images(Path(self.folder.path), self.image)

    def samples(self) -> Iterator[Sample]:
        for path in self._files():
            columns = self._columns(path)
            part, number = path.relative_to(self.folder.path).as_posix(), 0
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                    for row in batch.to_pylist():
                        yield self._sample(part, number, row)
                        number += 1

    def _sample(self, part: str, number: int, row: dict[str, Any]) -> Sample:
        image, spoken = row.get(self.image), tuple[str, ...]()
        path = image.get("path") if isinstance(image, dict) else None
        url = row.get(self.url) if self.url is not None else path
        where = (f"{part}/{number}" if url is None or url == "" else str(url), part, number)
        try:
            spoken = caption(row[self.caption])
        except RowFault as fault:
            return Sample(where[0], spoken, part, number, why=fault.why, detail=fault.detail)
        return Sample(where[0], spoken, part, number)

    def _files(self) -> list[Path]:
        folder, start = Path(self.folder.path), "" if self.split is None else f"{self.split}-"
        every = sorted(
            path
            for path in folder.rglob("*.parquet")
            if not any(name[0] in "._" for name in path.relative_to(folder).parts)
        )
        found = [path for path in every if path.name.startswith(start)]
        if not found:
            names = {path.name.partition("-")[0] for path in every if "-" in path.name}
            near = did_you_mean(self.split, names) if self.split else ""
            raise VlpipeError(f"the folder {folder} has no file {start}*.parquet{near}")
        return found

    def _columns(self, path: Path) -> list[str]:
        """Returns the light columns to read. Raises VlpipeError if the file lacks one of the named columns."""
        try:
            schema = pq.read_schema(path)
        except pa.ArrowInvalid as error:
            raise VlpipeError(f"{path} is truncated, or not a Parquet file: {error}") from error
        named = {"image": self.image, "caption": self.caption} | ({"url": self.url} if self.url else {})
        for parameter, name in named.items():
            if name not in schema.names:
                raise VlpipeError(
                    f"{path} has no column {name!r}{did_you_mean(name, schema.names)}; set {parameter!r}"
                )
            if (num := schema.names.count(name)) > 1:
                raise VlpipeError(f"{path} has the column {name!r} {num} times; wanted one")
        kind = schema.field(self.image).type
        if pa.types.is_struct(kind):
            if kind.get_field_index("bytes") < 0:
                raise VlpipeError(f"{path}: column {self.image!r} is {kind}, without the field `bytes`")
            paths = [f"{self.image}.path"] if kind.get_field_index("path") >= 0 and not self.url else []
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            paths = []
        else:
            raise VlpipeError(
                f"{path}: column {self.image!r} is {kind}; wanted bytes, or structs with `bytes`"
            )
        return [*paths, *(name for parameter, name in named.items() if parameter != "image")]
