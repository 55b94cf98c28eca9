"""Captions as a file of COCO's results, which the servers of COCO and NoCaps take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import TEXTS


@dataclass(frozen=True, kw_only=True)
class CaptionResults(GatherStage):
    """Artifact results.json: [{image_id, caption}], the first text of `source` of each row and its `image_number`.

    https://cocodataset.org/#format-results, https://nocaps.org. source: `source` of the texts, such as that of a captioner.
    Raises VlpipeError for a row without such a text, or two rows with one number: servers want one caption per image.
    """

    NAME: ClassVar[str] = "evaluate.caption_metrics.results:CaptionResults"
    ROWS_ARE: ClassVar[str] = "none"

    source: str

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.caption_metrics", id=pa.string(), texts=TEXTS, image_number=pa.int64())
        return pa.schema([])

    def run(self, job: Job) -> None:
        found: dict[int, str] = {}
        for id_, number, texts in self._rows(job):
            said = next((one["text"] for one in texts or () if one["source"] == self.source), None)
            if said is None or number is None:
                wanted = "image_number" if number is None else f"text of source {self.source!r}"
                raise VlpipeError(f"row {id_} has no {wanted}, but results need one caption of each image")
            if number in found:
                raise VlpipeError(f"row {id_}: another row has the image_number {number}, too")
            found[number] = said
        listed = [{"image_id": number, "caption": said} for number, said in found.items()]
        (Path(job.artifacts) / "results.json").write_text(json.dumps(listed), encoding="utf-8")
        job.say(f"{len(listed):,} captions")

    def _rows(self, job: Job) -> Iterator[tuple[str, int | None, list[dict[str, Any]] | None]]:
        for data in job.inputs:
            for table in data.batches(["id", "image_number", "texts"]):
                columns = (table[name].to_pylist() for name in ("id", "image_number", "texts"))
                yield from zip(*columns, strict=True)
