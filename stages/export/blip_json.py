"""Writes a step's rows as BLIP's JSON, a list of {image, caption, image_id}, beside a folder with the image files.

https://github.com/salesforce/BLIP, data/pretrain_dataset.py and coco_karpathy_dataset.py; `lists.coco` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet.row_digest import checked
from vlpipe.pipeline.shard import Reject, Shard, need, read_batches
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.pipeline.storage.store import Store, sha256_file
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.export.chosen import Source, Which, chosen_texts
from vlpipe.stages.export.webdataset import link
from vlpipe.stages.filter.keep_matched import NO_TEXT_KEPT
from vlpipe.stages.formats.signatures import ENDINGS

WRITTEN = pa.schema(
    [("file", pa.string()), ("num_rows", pa.int64()), ("num_captions", pa.int64()), ("sha256", pa.string())]
)
FILE = "captions.json"


@dataclass(frozen=True, kw_only=True)
class WriteBlipJson(GatherStage):
    """Artifacts: captions.json, one entry per text, and `images/SHARD/ID.jpg`, the stored bytes; `image` is the path
    relative to captions.json; a / in an id is %2F there. Output rows (columns: WRITTEN): one, of captions.json.

    texts: which of the kept texts, `first`, `best` (highest score) or `all`. sources: use only texts of these; None: all.
    Rows without such a text are rejected (filtered, no_text_kept). images: False: entries have the row's `url` instead of
    `image`, as BLIP's lists of web images, and no image is written. A killed run keeps its finished shards. `vlpipe forget`
    of a row removes all files; the next run writes them without it.
    """

    ROWS_ARE: ClassVar[str] = "the file; that each row is in it or rejected is checked for each shard"

    texts: Which = "all"
    sources: tuple[Source, ...] | None = None
    images: bool = True

    NAME: ClassVar[str] = "export.blip_json:WriteBlipJson"
    COPIES: ClassVar[bool] = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        wanted = {"id": pa.string(), "texts": TEXTS}
        of_images = {"format": pa.string(), "image": pa.binary()}
        need(inp, "export.blip_json", **wanted, **(of_images if self.images else {"url": pa.string()}))
        return WRITTEN

    def run(self, job: Job) -> None:
        work = Store(job.work)
        shards = [(data, shard) for data in job.inputs for shard in data.shards]
        num_rows = num_captions = 0
        with open(Path(job.artifacts, FILE), "w", encoding="utf-8") as file:
            for number, (data, shard) in enumerate(shards):
                part = self._part(work, f"{number:06d}", data, shard)
                job.reject([Reject(**one) for one in part["rejects"]])
                _append(file, Path(work.path(part["file"])), is_first=num_captions == 0)
                num_rows, num_captions = num_rows + part["num_rows"], num_captions + part["num_captions"]
                for name in part["images"]:
                    target = Path(job.artifacts, "images", name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link(Path(work.path(name)), target)
                job.say(f"{number + 1} of {len(shards)} shards")
            file.write("\n]\n" if num_captions else "[]\n")
        about = {"file": FILE, "num_rows": num_rows, "num_captions": num_captions}
        digest = sha256_file(Path(job.artifacts, FILE))
        job.emit(pa.Table.from_pylist([{**about, "sha256": digest}], WRITTEN))

    def _part(self, work: Store, name: str, data: Dataset, shard: Shard) -> dict[str, Any]:
        """Writes images and entries of one shard, unless an earlier attempt finished it. Returns what is known of it."""
        if work.exists(f"{name}.json"):  # written last
            found: dict[str, Any] = work.read_json(f"{name}.json")
            return found
        rejects: list[Reject] = []
        images: list[str] = []
        num_rows = num_captions = 0
        with work.writing(f"{name}.lines") as path, open(path, "w", encoding="utf-8") as file:
            for row, texts in self._rows(data, shard, rejects):
                if self.images:
                    images.append(self._image(work, name, row))
                place = {"image": f"images/{images[-1]}"} if self.images else {"url": row["url"]}
                for text in texts:
                    file.write(json.dumps({**place, "caption": text, "image_id": row["id"]}) + "\n")
                num_rows, num_captions = num_rows + 1, num_captions + len(texts)
        if num_rows + len(rejects) != shard.num_rows:
            raise VlpipeError(
                f"{shard.path} has {shard.num_rows} rows; {num_rows} were written, {len(rejects)} rejected"
            )
        counted = {"num_rows": num_rows, "num_captions": num_captions, "images": images}
        made = {"file": f"{name}.lines", **counted, "rejects": [asdict(one) for one in rejects]}
        work.write_json(f"{name}.json", made)
        return made

    def _rows(
        self, data: Dataset, shard: Shard, rejects: list[Reject]
    ) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """Yields (row, its texts); rows without a text go to `rejects`."""
        light = ["id", "texts", *(("format", "sha256") if self.images else ("url",))]
        light = [name for name in light if name in data.schema.names]
        for batch in read_batches(data.store, shard, light, ["image"] if self.images else []):
            for row in (checked(batch, shard.path) if self.images else batch).to_pylist():
                chosen = chosen_texts(row["texts"] or [], self.texts, self.sources)
                if chosen:
                    yield row, [one["text"] for one in chosen]
                else:
                    detail = "no text" if self.sources is None else f"no text of {', '.join(self.sources)}"
                    rejects.append(Reject(row["id"], "filtered", NO_TEXT_KEPT, detail))

    def _image(self, work: Store, name: str, row: dict[str, Any]) -> str:
        """Writes the image of a row. Returns its path below the folder of images."""
        ending = ENDINGS.get(row["format"])
        if ending is None:
            raise VlpipeError(
                f"row {row['id']}: unknown format {row['format']!r}; known: {', '.join(ENDINGS)}"
            )
        if row["image"] is None:
            raise VlpipeError(f"row {row['id']} has no image; an earlier step must reject such rows")
        rel = f"{name}/{row['id'].replace('%', '%25').replace('/', '%2F')}.{ending}"
        work.write_bytes(rel, row["image"], sync_folder=False)
        return rel


def _append(file: IO[str], lines: Path, is_first: bool) -> None:
    """Appends entries, a line of JSON each, to a JSON array that is open."""
    with open(lines, encoding="utf-8") as part:
        for line in part:
            file.write(("[\n" if is_first else ",\n") + line.rstrip("\n"))
            is_first = False
