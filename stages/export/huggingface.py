"""Writes a step's rows as a dataset folder of Hugging Face: Parquet files with pictures, and a dataset card.

`datasets.load_dataset(FOLDER)` reads it; `huggingface-cli upload` publishes it. Layout and card:
https://huggingface.co/docs/hub/datasets-adding
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet.row_digest import checked
from vlpipe.pipeline.shard import Reject, Shard, need, read_batches
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.pipeline.storage.store import Store, sha256_file
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.export.card import Counts, card, host
from vlpipe.stages.export.chosen import Source, Which, chosen_texts, is_plain
from vlpipe.stages.export.webdataset import link
from vlpipe.stages.filter.keep_matched import NO_TEXT_KEPT
from vlpipe.stages.formats.signatures import ENDINGS

WRITTEN = pa.schema(
    [("file", pa.string()), ("num_rows", pa.int64()), ("num_bytes", pa.int64()), ("sha256", pa.string())]
)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # how `datasets` stores an image
# The type of other columns follows from Arrow's. `datasets` ignores the feature of a column that is not of the type above.
FEATURES = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
# As `datasets` writes files (its config.py): Hub storage shares chunks between versions, and the viewer reads single pages.
CHUNKS = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}
MAX_GROUP_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class WriteHuggingFace(GatherStage):
    """Writes one Parquet file per shard of the first input, and README.md, the dataset card. Output rows: one per file.

    Columns: `image`; `caption` with its `caption_source` and `caption_score`, or with `texts: all` lists of them
    (`captions`, ...); and the row's columns of numbers, booleans and strings. Further inputs are earlier steps: the card has
    their numbers of rows.

    texts: which of the kept texts, `first`, `best` (highest score) or `all`. sources: use only texts of these sources;
    None: all. Rows without such a text are rejected (filtered, no_text_kept). license, language (ISO 639-1), title,
    description, limits (known ones, a sentence each): for the card. A killed run keeps its finished files. `vlpipe forget`
    of a row removes all files; the next run writes them without it.
    """

    ROWS_ARE: ClassVar[str] = "the files; that each row is in one or rejected is checked for each of them"

    texts: Which = "best"
    sources: tuple[Source, ...] | None = None
    split: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")] = "train"  # as `datasets` allows
    title: str = "Image-text pairs"
    description: str = ""
    license: str = ""
    language: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    NAME: ClassVar[str] = "export.huggingface:WriteHuggingFace"
    COPIES: ClassVar[bool] = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(
            inp,
            "export.huggingface",
            id=pa.string(),
            url=pa.string(),
            texts=TEXTS,
            format=pa.string(),
            image=pa.binary(),
        )
        return WRITTEN

    def names_in_key(self, names: Sequence[str]) -> Sequence[str]:
        return names  # the card has them

    def run(self, job: Job) -> None:
        work, data = Store(job.work), job.inputs[0]
        counts, files = Counts(), []
        Path(job.artifacts, "data").mkdir()
        for number, shard in enumerate(data.shards):
            part = self._part(work, number, data, shard)
            counts.add(part["counts"])
            job.reject([Reject(**one) for one in part["rejects"]])
            name = f"data/{self.split}-{number:05d}-of-{len(data.shards):05d}.parquet"
            link(Path(work.path(part["file"])), Path(job.artifacts, name))
            files.append({**{n: part[n] for n in WRITTEN.names}, "file": name})
            job.say(f"{number + 1} of {len(data.shards)} files")
        earlier = {one.name: one.num_rows for one in job.inputs[1:]}
        text = card(
            counts,
            earlier,
            split=self.split,
            title=self.title,
            description=self.description,
            license=self.license,
            language=self.language,
            limits=self.limits,
        )
        Path(job.artifacts, "README.md").write_text(text, encoding="utf-8")
        job.emit(pa.Table.from_pylist(files, WRITTEN))

    def _part(self, work: Store, number: int, data: Dataset, shard: Shard) -> dict[str, Any]:
        """Writes the file of one shard, unless an earlier attempt finished it. Returns what is known of it."""
        name, about = f"{number:06d}.parquet", f"{number:06d}.json"
        if work.exists(about):  # written after the file
            found: dict[str, Any] = work.read_json(about)
            return found
        rejects: list[Reject] = []
        counts, schema = Counts(), self._file_schema(data.schema)
        with work.writing(name) as part, _writer(part, schema) as writer:
            for rows in self._rows(data, shard, schema, counts, rejects):
                writer.write_table(rows)
        if counts.num_rows + len(rejects) != shard.num_rows:
            raise VlpipeError(
                f"{shard.path} has {shard.num_rows} rows; {counts.num_rows} were written, {len(rejects)} rejected"
            )
        made = {
            "file": name,
            "num_rows": counts.num_rows,
            "num_bytes": work.size(name),
            "sha256": sha256_file(work.path(name)),
            "counts": counts.as_json(),
            "rejects": [asdict(one) for one in rejects],
        }
        work.write_json(about, made)
        return made

    def _file_schema(self, inp: pa.Schema) -> pa.Schema:
        """Returns the columns of the files."""
        texts = [
            ("caption", pa.string()),
            ("caption_source", pa.string()),
            ("caption_score", pa.float32()),
        ]
        if self.texts == "all":
            texts = [(name.replace("caption", "captions", 1), pa.list_(dtype)) for name, dtype in texts]
        taken = {"image", *(name for name, _ in texts)}
        plain = [f.remove_metadata() for f in inp if is_plain(f) and f.name not in taken]
        fields = [pa.field("image", IMAGE), *(pa.field(name, dtype) for name, dtype in texts), *plain]
        return pa.schema(fields, {b"huggingface": FEATURES.encode()})

    def _rows(
        self, data: Dataset, shard: Shard, schema: pa.Schema, counts: Counts, rejects: list[Reject]
    ) -> Iterator[pa.Table]:
        """Yields tables of the rows that are written, of at most MAX_GROUP_BYTES of images."""
        light = [f.name for f in data.schema if f.name == "texts" or is_plain(f)]
        rows: list[dict[str, Any]] = []
        num_bytes = 0
        for batch in read_batches(data.store, shard, light, ["image"]):
            for row in checked(batch, shard.path).to_pylist():
                chosen = chosen_texts(row["texts"] or [], self.texts, self.sources)
                if not chosen:
                    detail = "no text" if self.sources is None else f"no text of {', '.join(self.sources)}"
                    rejects.append(Reject(row["id"], "filtered", NO_TEXT_KEPT, detail))
                    continue
                size = len(row["image"] or b"")
                if rows and num_bytes + size > MAX_GROUP_BYTES:
                    yield pa.Table.from_pylist(rows, schema)
                    rows, num_bytes = [], 0
                rows.append({**row, **self._captions(chosen), "image": _image(row)})
                num_bytes += size
                counts.row(host(row["url"]), [one["source"] for one in chosen], row["format"])
        if rows:
            yield pa.Table.from_pylist(rows, schema)

    def _captions(self, chosen: Sequence[Any]) -> dict[str, Any]:
        keys = {"": "text", "_source": "source", "_score": "score"}
        if self.texts == "all":
            return {f"captions{end}": [one[key] for one in chosen] for end, key in keys.items()}
        return {f"caption{end}": chosen[0][key] for end, key in keys.items()}


def _writer(path: str, schema: pa.Schema) -> pq.ParquetWriter:
    writer = pq.ParquetWriter(
        path, schema, compression="zstd", write_page_index=True, use_content_defined_chunking=CHUNKS
    )
    writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CHUNKS)})
    return writer


def _image(row: dict[str, Any]) -> dict[str, Any]:
    """Returns an image as `datasets` stores it. Raises VlpipeError for an unknown format or a missing image."""
    ending = ENDINGS.get(row["format"])
    if ending is None:
        raise VlpipeError(f"row {row['id']}: unknown format {row['format']!r}; known: {', '.join(ENDINGS)}")
    if row["image"] is None:
        raise VlpipeError(f"row {row['id']} has no image; an earlier step must reject such rows")
    return {"bytes": row["image"], "path": f"{row['id']}.{ending}"}
