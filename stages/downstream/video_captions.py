"""Scores of captions that a model writes about videos, against human ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job, Stage
from vlpipe.pipeline.storage.store import canonical_json
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.downstream.examples import Example, examples, items_of, makers_of, stream_of, swapped
from vlpipe.stages.downstream.generated import greedy
from vlpipe.stages.evaluate.caption_metrics.java import java_problems
from vlpipe.stages.evaluate.caption_scores import TOKENIZER, Metric, caption_scores, more_scores
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES, items, write_items
from vlpipe.stages.loading.makers.base import Maker

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Batch
    from vlpipe.stages.common.model import Loaded


@dataclass(frozen=True, kw_only=True)
class VideoCaptions(GatherStage):
    """Emits RESULTS `cider/true` (0 to 10), `bleu@4/true` and those of `more` (0 to 1), of one caption of each row against
    its texts, and `/swapped`, the same with the video of another row.

    Captions are written token by token, each the likeliest one, at most `max_length`. more: of rouge_l, meteor and spice.
    Artifact captions.json: each caption with its references; items.parquet: `cider/true` of each row. streams: parameters of
    makers, as in `train.train`.
    """

    NAME: ClassVar[str] = "downstream.video_captions:VideoCaptions"
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_length: Annotated[int, Field(ge=1)] = 20
    more: tuple[Metric, ...] = ("rouge_l",)
    batch_size: Annotated[int, Field(ge=2)] = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.video_captions", id=pa.string(), texts=TEXTS)
        return RESULTS

    def preflight(self) -> list[str]:
        java = [metric for metric in self.more if metric != "rouge_l"]
        return [problem for metric in java for problem in java_problems(metric)]

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import PredictsNext
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [PredictsNext])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import PredictsNext
        from vlpipe.stages.common.model import load

        loaded = load(self.model, needs=[PredictsNext])
        makers = makers_of(loaded, self.streams)
        found: dict[str, list[tuple[Example, str]]] = {"true": [], "swapped": []}
        for rows, batch in _batches(loaded, job.inputs, makers, self.batch_size):
            others, places = swapped(rows, batch)
            for partner, seen, of in (("true", batch, range(len(rows))), ("swapped", others, places)):
                prompts = [[loaded.tokenizer.start]] * len(rows)
                said = greedy(loaded.model, seen, prompts, loaded.tokenizer, self.max_length)
                found[partner] += [(rows[k], said[k]) for k in of]
        results: list[dict[str, Any]] = []
        for partner, pairs in found.items():
            captions, wanted = [said for _, said in pairs], [one.row.texts for one, _ in pairs]
            scores, ciders = caption_scores(captions, wanted)
            scores |= {metric: more_scores(metric, captions, wanted)[0] for metric in self.more}
            results += [
                {"name": f"{name}/{partner}", "value": value, "num_rows": len(pairs)}
                for name, value in scores.items()
            ]
            if partner == "true":
                ids = [one.row.id for one, _ in pairs]
                each = items("cider/true", list(zip(ids, ids, strict=True)), ciders)
        write_items(Path(job.artifacts), [each])
        listed = [
            {"id": one.row.id, "caption": said, "references": one.row.texts} for one, said in found["true"]
        ]
        content = canonical_json({"tokenizer": TOKENIZER, "captions": listed})
        Path(job.artifacts, "captions.json").write_bytes(content)
        job.emit(pa.Table.from_pylist(results, RESULTS))


def _batches(
    loaded: Loaded, inputs: Sequence[Dataset], makers: Mapping[str, Maker], size: int
) -> Iterator[tuple[list[Example], Batch]]:
    """Yields each row once, with the batch of its streams but `text`."""
    from vlpipe.stages.common.model import batch_of

    columns = tuple(dict.fromkeys(name for maker in makers.values() for name in maker.COLUMNS))
    left = (one for one in examples(inputs, columns) if one.number == 0)
    while rows := list(islice(left, size)):
        streams = {
            name: stream_of(maker, items_of(maker, rows), loaded)
            for name, maker in makers.items()
            if name != "text"
        }
        yield rows, batch_of(streams)
