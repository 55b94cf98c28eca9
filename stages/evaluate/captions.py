"""Generates captions for held-out images and scores them against human captions: CIDEr and BLEU-4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.pipeline.storage.store import canonical_json
from vlpipe.stages.common.batches import batch_size_problems, encode_images, fixed_batches
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.caption_scores import PIP_LINE, TOKENIZER, caption_scores
from vlpipe.stages.evaluate.heldout import Key, heldout, need_heldout, nothing_to_evaluate
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES, items, write_items
from vlpipe.stages.inference.ahead import Ahead
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    import torch

    from vlpipe.stages.common.model import Loaded


@dataclass(frozen=True, kw_only=True)
class Captions(RunsModel, GatherStage):
    """Emits RESULTS `cider` (0 to 10) and `bleu@4` (0 to 1). Artifact `captions.json`: each caption with its references;
    `items.parquet` (columns: ITEMS): `cider` of each image, for `evaluate.compare`.

    source: `source` of the texts that are references. num_beams: 1 is greedy search; BLIP uses 3. min_length, max_length:
    new tokens, without prompt and end token (BLIP's 5 and 20 include 4 tokens for [DEC] and "a picture of").
    """

    NAME: ClassVar[str] = "evaluate.captions:Captions"
    VERSION: ClassVar[int] = 3  # 2: never generates [UNK] or [MASK]; 3: items.parquet
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

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need_heldout(inp, "evaluate.captions")
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
        if find_spec("pycocoevalcap") is None:
            problems.append(f"caption scores need pycocoevalcap: {PIP_LINE}")
        return problems

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
        scores, ciders = caption_scores(
            [caption for _, caption in found], [several for (_, several), _ in found]
        )
        job.say(f"{len(found)} captions scored, tokenizer {TOKENIZER}")
        self._write(Path(job.artifacts) / "captions.json", found)
        ids = [id_ for (id_, _), _ in found]
        write_items(Path(job.artifacts), [items("cider", list(zip(ids, ids, strict=True)), ciders)])
        rows = [{"name": name, "value": value, "num_rows": len(found)} for name, value in scores.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _captions(self, job: Job, model: Loaded, rejects: list[Reject]) -> list[tuple[Key, str]]:
        found: list[tuple[Key, str]] = []
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

    def _write(self, path: Path, found: list[tuple[Key, str]]) -> None:
        captions = [{"id": id_, "caption": c, "references": several} for (id_, several), c in found]
        path.write_bytes(canonical_json({"tokenizer": TOKENIZER, "captions": captions}))
