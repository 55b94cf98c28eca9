"""Generates captions for held-out images and scores them against human captions: CIDEr, BLEU-4, and others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.pipeline.storage.store import canonical_json
from vlpipe.stages.common.batches import batch_size_problems, encode_images, fixed_batches
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.caption_scores import (
    TOKENIZER,
    Metric,
    caption_scores,
    more_scores,
    score_problems,
)
from vlpipe.stages.evaluate.heldout import Key, heldout, need_heldout, nothing_to_evaluate
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES, items, write_items
from vlpipe.stages.inference.ahead import Ahead
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    import torch

    from vlpipe.stages.common.model import Loaded

Found = list[tuple[Key, str]]  # image with its references, caption


@dataclass(frozen=True, kw_only=True)
class Captions(RunsModel, GatherStage):
    """Emits RESULTS `cider` (0 to 10), `bleu@4` (0 to 1) and those of `more` (0 to 1). Artifact `captions.json`: each
    caption with its references; `items.parquet` (columns: ITEMS): the scores of each image, for `evaluate.compare`,
    without BLEU's and METEOR's, which are of all captions together.

    source: `source` of the texts that are references. num_beams: 1 is greedy search; BLIP uses 3. min_length, max_length:
    new tokens, without prompt and end token (BLIP's 5 and 20 include 4 tokens for [DEC] and "a picture of").

    more: of rouge_l, meteor and spice; the last two need Java. by: a column of strings, such as NoCaps' `domain`: scores are
    also of the captions of each of its values alone, as `NAME/VALUE`, if it has two or more.
    """

    NAME: ClassVar[str] = "evaluate.captions:Captions"
    VERSION: ClassVar[int] = 3  # 2: never generates [UNK] or [MASK]; 3: items.parquet
    ADDED: ClassVar[frozenset[str]] = RunsModel.ADDED | {"more", "by"}
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    source: str = "human"
    prompt: str = ""
    num_beams: int = 3
    min_length: int = 1
    max_length: int = 20
    batch_size: int = 64
    more: tuple[Metric, ...] = ()
    by: str | None = None

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need_heldout(inp, "evaluate.captions")
        if self.by is not None:
            need(inp, "evaluate.captions", **{self.by: pa.string()})
        return RESULTS

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size) + self.worker_problems()
        if self.num_beams < 1:
            problems.append(f"num_beams must be at least 1 (greedy), got {self.num_beams}")
        if not 0 <= self.min_length <= self.max_length or self.max_length < 1:
            problems.append(
                f"min_length must be from 0 to max_length, and max_length at least 1; got min_length: {self.min_length}, "
                f"max_length: {self.max_length}"
            )
        return problems + score_problems(self.more)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Generates
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Generates])

    def run(self, job: Job) -> None:
        from vlpipe.models.generation.generate import check
        from vlpipe.models.interface.capabilities import Generates
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=[Generates], precision=self.precision)
        check(model.model, self.min_length, self.max_length, model.tokenizer.ids(self.prompt))
        rejects: list[Reject] = []
        found = self._captions(job, model, rejects)
        if not found:
            raise nothing_to_evaluate(self.source, rejects)
        job.reject(rejects)
        rows, of_images = self._scored(found)
        for name, part in self._parts(job, found):
            rows += [{**row, "name": f"{row['name']}/{name}"} for row in self._scored(part)[0]]
        job.say(f"{len(found)} captions scored, tokenizer {TOKENIZER}")
        self._write(Path(job.artifacts) / "captions.json", found)
        write_items(Path(job.artifacts), of_images)
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _scored(self, found: Found) -> tuple[list[dict[str, Any]], list[pa.Table]]:
        """Returns RESULTS rows, and ITEMS of the scores that each image has."""
        captions, wanted = [caption for _, caption in found], [several for (_, several), _ in found]
        scores, ciders = caption_scores(captions, wanted)
        each: dict[str, npt.NDArray[np.float64] | None] = {"cider": ciders}
        for metric in self.more:
            scores[metric], each[metric] = more_scores(metric, captions, wanted)
        ids = [id_ for (id_, _), _ in found]
        of = list(zip(ids, ids, strict=True))
        rows = [{"name": name, "value": value, "num_rows": len(found)} for name, value in scores.items()]
        return rows, [items(name, of, values) for name, values in each.items() if values is not None]

    def _parts(self, job: Job, found: Found) -> Iterator[tuple[str, Found]]:
        """Yields the values of the column `by` in order, and the captions of each; those of one image have no CIDEr."""
        if self.by is None:
            return
        value_of: dict[str, str | None] = {}
        for data in job.inputs:
            for table in data.batches(["id", self.by]):
                value_of |= zip(table["id"].to_pylist(), table[self.by].to_pylist(), strict=True)
        parts: dict[str, Found] = {}
        for (id_, several), caption in found:
            value = value_of[id_]
            if value is not None:
                parts.setdefault(value, []).append(((id_, several), caption))
        yield from ((value, part) for value, part in sorted(parts.items()) if len(part) > 1)

    def _captions(self, job: Job, model: Loaded, rejects: list[Reject]) -> Found:
        found: Found = []
        with Ahead(self.decode_workers, model.is_on_gpu) as ahead:
            images = heldout(job, self.source, model.image_size, rejects, ahead)
            encoded = encode_images(images, model.encode_images, self.batch_size, ahead)
            for batch, num_real in fixed_batches(encoded, self.batch_size):
                captions = self._decode(model, [tokens for _, tokens in batch])
                found += zip([key for key, _ in batch[:num_real]], captions[:num_real], strict=True)
        return found

    def _decode(self, model: Loaded, tokens: list[torch.Tensor]) -> list[str]:
        import torch

        from vlpipe.models.generation.beam import search

        with torch.inference_mode():
            found = search(
                model.model,
                torch.stack(tokens),  # (B, N, D)
                num_beams=self.num_beams,
                min_length=self.min_length,
                max_length=self.max_length,
                prompt_ids=model.tokenizer.ids(self.prompt),
            )
        return [model.tokenizer.decode(ids) for ids in found]

    def _write(self, path: Path, found: Found) -> None:
        captions = [{"id": id_, "caption": c, "references": several} for (id_, several), c in found]
        path.write_bytes(canonical_json({"tokenizer": TOKENIZER, "captions": captions}))
