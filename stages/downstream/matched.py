"""Retrieval by a matching head alone: each text is scored with each image, as UNITER, Oscar and ViLT are evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job, Stage
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.downstream.examples import Example, batches, examples, makers_of, stream_of
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES, items, write_items
from vlpipe.stages.loading.makers.base import Item, Maker
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Batch
    from vlpipe.stages.common.model import Loaded

RECALL_AT = (1, 5, 10)
Ranks = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MatchRetrieval(GatherStage):
    """Emits RESULTS: recall `tr@k` over images and `ir@k` over texts, k = 1, 5, 10, as fractions from 0 to 1, and `tr_medr`
    and `ir_medr`, the median ranks from 1.

    The score of a pair is the logit of yes minus that of no of the model's `match`. `tr`: the rank of the best text of the
    image's own; `ir`: that of the text's own image. Rows of the same picture count as one image. Ties count against the
    right one, and so does a score that is not a number. Takes a forward pass for each pair of an image and a text; memory is
    two numbers and the tokens of each text. Artifact items.parquet: whether each query is a hit (0 or 1).
    streams: parameters of makers, as in `train.train`.
    """

    NAME: ClassVar[str] = "downstream.matched:MatchRetrieval"
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1)] = 256

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.matched", id=pa.string(), texts=TEXTS)
        return RESULTS

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Matches
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Matches])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import Matches
        from vlpipe.stages.common.model import load

        loaded = load(self.model, needs=[Matches])
        makers = makers_of(loaded, self.streams)
        if "text" not in makers:
            raise VlpipeError(f"downstream.matched: {type(loaded.model).__name__} has no stream `text`")
        own = _Own.scored(loaded, job.inputs, makers, self.batch_size)
        of_images, of_texts = self._ranks(job, loaded, makers, own)
        found = {
            "tr": (of_images, [(row, row) for row in own.images.values()]),
            "ir": (of_texts, list(zip(own.names, own.rows, strict=True))),
        }
        write_items(
            Path(job.artifacts),
            (items(f"{way}@{k}", of, ranks <= k) for way, (ranks, of) in found.items() for k in RECALL_AT),
        )
        results = [row for way, (ranks, _) in found.items() for row in figures(way, ranks)]
        job.emit(pa.Table.from_pylist(results, RESULTS))

    def _ranks(self, job: Job, loaded: Loaded, makers: Mapping[str, Maker], own: _Own) -> tuple[Ranks, Ranks]:
        of_images: list[int] = []
        of_texts = np.ones(len(own.texts), np.int64)
        tokens = _Tokens(makers["text"], own.texts)
        for row in _pictures(job.inputs, makers):
            mine = own.owners == row.image_id
            scores = np.concatenate(
                [
                    _scores(loaded, _paired(loaded, makers, row, tokens.of(row, part)))
                    for part in _parts(len(own.texts), self.batch_size)
                ]
            )
            best = own.scores[mine].max()
            of_images.append(1 + int((~(scores[~mine] < best)).sum()))
            of_texts += ~(scores < own.scores) & ~mine
        return np.array(of_images), of_texts


@dataclass(frozen=True)
class _Own:
    """All texts with the score of each with its own image (T,), and the picture it belongs to (T,).

    images: picture -> id of its first row, in order; names, rows: the name of each text and the id of its row.
    """

    texts: list[str]
    names: list[str]
    rows: list[str]
    owners: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    images: dict[int, str]

    @classmethod
    def scored(
        cls, loaded: Loaded, inputs: Sequence[Dataset], makers: Mapping[str, Maker], size: int
    ) -> _Own:
        found: list[Example] = []
        scores = []
        for several, batch in batches(loaded, inputs, makers, size):
            found += [Example(Row(e.row.id, e.row.image_id, [], {}), e.text, e.number) for e in several]
            scores.append(_scores(loaded, batch))
        images: dict[int, str] = {}
        for one in found:
            images.setdefault(one.row.image_id, one.row.id)
        if len(images) < 2:
            raise VlpipeError(f"downstream.matched: wanted texts of two images or more, got {len(images)}")
        return cls(
            [one.text for one in found],
            [one.item for one in found],
            [one.row.id for one in found],
            np.array([one.row.image_id for one in found], np.int64),
            np.concatenate(scores),
            images,
        )


class _Tokens:
    """The items of texts for the model: made once, unless they depend on the row of the image, as tags do."""

    def __init__(self, maker: Maker, texts: Sequence[str]) -> None:
        self._maker, self._texts = maker, texts
        self._made: dict[int, Item] | None = None if maker.COLUMNS else {}

    def of(self, row: Row, part: range) -> list[Item]:
        if self._made is None:
            return [self._make(row, k) for k in part]
        for k in part:
            if k not in self._made:
                self._made[k] = self._make(row, k)
        return [self._made[k] for k in part]

    def _make(self, row: Row, place: int) -> Item:
        return self._maker(row, self._texts[place], np.random.default_rng(0))


def _pictures(inputs: Sequence[Dataset], makers: Mapping[str, Maker]) -> Iterator[Row]:
    """Yields the first row of each picture that has a text."""
    columns = tuple(dict.fromkeys(name for maker in makers.values() for name in maker.COLUMNS))
    seen: set[int] = set()
    for one in examples(inputs, columns):
        if one.row.image_id not in seen:
            seen.add(one.row.image_id)
            yield one.row


def _parts(num: int, size: int) -> Iterator[range]:
    yield from (range(start, min(num, start + size)) for start in range(0, num, size))


def _paired(loaded: Loaded, makers: Mapping[str, Maker], row: Row, texts: Sequence[Item]) -> Batch:
    """Returns the batch of one image with each of these texts; its other streams are made once."""
    import torch

    from vlpipe.stages.common.model import batch_of

    first = torch.zeros(len(texts), dtype=torch.long, device=loaded.device)
    rng = np.random.default_rng(0)
    streams = {
        name: stream_of(maker, texts if name == "text" else [maker(row, "", rng)], loaded)
        for name, maker in makers.items()
    }
    return batch_of({name: s if name == "text" else s.rows(first) for name, s in streams.items()})


def _scores(loaded: Loaded, batch: Batch) -> npt.NDArray[np.float32]:
    """Returns the logit of yes minus that of no of each row, (B,)."""
    import torch

    from vlpipe.models.interface.outputs import Outputs

    with torch.inference_mode():
        logits = Outputs(loaded.model, batch, grad=False).match.float()
        found: npt.NDArray[np.float32] = (logits[:, 1] - logits[:, 0]).cpu().numpy()
    return found


def figures(way: str, ranks: Ranks) -> list[dict[str, Any]]:
    """Returns RESULTS rows of ranks from 1. way: tr or ir."""
    values = {f"{way}@{k}": float((ranks <= k).mean()) for k in RECALL_AT}
    values[f"{way}_medr"] = float(np.median(ranks))
    return [{"name": name, "value": value, "num_rows": len(ranks)} for name, value in values.items()]
