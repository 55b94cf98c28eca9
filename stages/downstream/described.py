"""Captions that a model writes of images, from regions or pixels; their scores, and a file for servers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job, Stage
from vlpipe.pipeline.storage.store import canonical_json
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.downstream.examples import makers_of, stream_of
from vlpipe.stages.evaluate.caption_scores import (
    TOKENIZER,
    Metric,
    caption_scores,
    length_problems,
    more_scores,
    score_problems,
)
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES, items, write_items
from vlpipe.stages.loading.rows import Row, read_unit, scan

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded
    from vlpipe.stages.loading.makers.base import Maker

NUMBER = "image_number"  # the id of an image in the files of COCO and NoCaps


@dataclass(frozen=True, kw_only=True)
class DescribedImages(GatherStage):
    """Emits RESULTS `cider` (0 to 10), `bleu@4` and those of `more` (0 to 1), and `swapped/cider`, of the captions of the
    row halfway round. Artifacts: captions.json, each caption with its references; results.json, [{image_id, caption}], as
    the servers of COCO and NoCaps take it, if rows have `image_number`; items.parquet, the CIDEr of each image.

    For models that read regions (VLP), or pixels; `evaluate.captions` is for pixels alone. model: with the capability
    Generates; what it reads beside its text is made as in training. All usable texts of a row are references. num_beams: 1
    is greedy search. min_length, max_length: new tokens, without the end token. more: of rouge_l, meteor and spice; the
    last two need Java. streams: parameters of makers, as in `train.train`. Raises VlpipeError without rows, or for numbers
    of images that are missing or repeated.
    """

    NAME: ClassVar[str] = "downstream.described:DescribedImages"
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_beams: Annotated[int, Field(ge=1)] = 3
    min_length: Annotated[int, Field(ge=0)] = 1
    max_length: Annotated[int, Field(ge=1)] = 20
    more: tuple[Metric, ...] = ("rouge_l",)
    batch_size: Annotated[int, Field(ge=1)] = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.described", id=pa.string(), texts=TEXTS)
        if NUMBER in inp.names:
            need(inp, "downstream.described", **{NUMBER: pa.int64()})
        return RESULTS

    def preflight(self) -> list[str]:
        return length_problems(self.min_length, self.max_length) + score_problems(self.more)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Generates
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Generates])

    def run(self, job: Job) -> None:
        from vlpipe.models.generation.generate import check
        from vlpipe.models.interface.capabilities import Generates
        from vlpipe.stages.common.model import load

        loaded = load(self.model, needs=[Generates])
        check(loaded.model, self.min_length, self.max_length, [])
        makers = {name: one for name, one in makers_of(loaded, self.streams).items() if name != "text"}
        captions: list[str] = []
        rows: list[Row] = []
        for batch in _batches(job.inputs, makers, self.batch_size):
            captions += self._write(loaded, makers, batch)
            rows += [Row(one.id, one.image_id, one.texts, _light(one)) for one in batch]
        if not rows:
            raise VlpipeError("downstream.described: there is no row with a usable text")
        references = [row.texts for row in rows]
        figures, each = caption_scores(captions, references)
        for metric in self.more:
            figures[metric], _ = more_scores(metric, captions, references)
        half = len(captions) // 2
        others, _ = caption_scores(captions[half:] + captions[:half], references)
        figures["swapped/cider"] = others["cider"]
        ids = [row.id for row in rows]
        folder = Path(job.artifacts)
        written = [
            {"id": row.id, "caption": one, "references": row.texts}
            for row, one in zip(rows, captions, strict=True)
        ]
        folder.joinpath("captions.json").write_bytes(
            canonical_json({"tokenizer": TOKENIZER, "captions": written})
        )
        if NUMBER in rows[0].columns:
            folder.joinpath("results.json").write_text(json.dumps(results(rows, captions)), encoding="utf-8")
        write_items(folder, [items("cider", list(zip(ids, ids, strict=True)), each)])
        job.say(f"{len(ids)} captions scored, tokenizer {TOKENIZER}")
        found = [{"name": n, "value": v, "num_rows": len(ids)} for n, v in figures.items()]
        job.emit(pa.Table.from_pylist(found, RESULTS))

    def _write(self, loaded: Loaded, makers: Mapping[str, Maker], rows: Sequence[Row]) -> list[str]:
        import torch

        from vlpipe.models.generation.beam import search

        rng = np.random.default_rng(0)  # nothing is drawn from it without augmentation
        streams = {
            name: stream_of(maker, [maker(row, row.texts[0], rng) for row in rows], loaded)
            for name, maker in makers.items()
        }
        with torch.inference_mode():
            found = search(
                loaded.model,
                loaded.outputs(**streams).image_tokens,
                num_beams=self.num_beams,
                min_length=self.min_length,
                max_length=self.max_length,
            )
        return [loaded.tokenizer.decode(ids) for ids in found]


def results(rows: Sequence[Row], captions: Sequence[str]) -> list[dict[str, Any]]:
    """Returns COCO's results. Raises VlpipeError for a row without a number, or two rows with one: servers want one caption
    of each image.
    """
    found: dict[int, str] = {}
    for row, caption in zip(rows, captions, strict=True):
        number = row.columns[NUMBER]
        if number is None or number in found:
            what = f"has no {NUMBER}" if number is None else f"has the {NUMBER} {number}, as another row has"
            raise VlpipeError(f"downstream.described: row {row.id} {what}")
        found[number] = caption
    return [{"image_id": number, "caption": caption} for number, caption in found.items()]


def _light(row: Row) -> dict[str, Any]:
    """Returns the number of a row's image, if it has such a column: all else is let go."""
    if NUMBER not in row.columns:
        return {}
    value = row.columns[NUMBER]
    return {NUMBER: value.as_py() if hasattr(value, "as_py") else value}


def _batches(inputs: Sequence[Dataset], makers: Mapping[str, Maker], size: int) -> Iterator[list[Row]]:
    rows = _rows(inputs, list(dict.fromkeys(name for maker in makers.values() for name in maker.COLUMNS)))
    while batch := list(islice(rows, size)):
        yield batch


def _rows(inputs: Sequence[Dataset], columns: Sequence[str]) -> Iterator[Row]:
    for data in inputs:
        own = [*columns, *([NUMBER] if NUMBER in data.schema.names else [])]
        for unit in scan(data, "images", own).units:
            yield from read_unit(unit, own)
