"""Scores of models that answer with one of a fixed set: VQA, visual entailment, statements about two images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.downstream.examples import Example, batches, makers_of, swapped
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES
from vlpipe.stages.fine_grained.items import Items
from vlpipe.stages.lists.vqa import ANSWERS
from vlpipe.stages.loading.makers.answer import as_dicts

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Batch

Scores = dict[int, float]  # label -> score


@dataclass(frozen=True, kw_only=True)
class AnswerScores(GatherStage):
    """Emits RESULTS: `accuracy/true`, the mean score of the answer with the highest logit; `accuracy/swapped`, the same with
    the images of another row; `accuracy/prior`, of one that gives each question, word for word, its best answer here.

    The score of an answer is that in the column `answers`, 0 for others; with those of `lists.vqa` and `leave_one_out` it is
    VQA's accuracy, with classes (entailment, NLVR2) the share of right ones. Questions without answers are left out, and of
    `swapped` those in a batch of one picture. Artifact items.parquet: the score of each question (ROW#NUMBER).
    streams: parameters of makers, as in `train.train`.
    """

    NAME: ClassVar[str] = "downstream.answered:AnswerScores"
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=2)] = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.answered", id=pa.string(), texts=TEXTS, answers=ANSWERS)
        return RESULTS

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Answers
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Answers])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import Answers
        from vlpipe.stages.common.model import load

        loaded = load(self.model, needs=[Answers])
        makers = makers_of(loaded, self.streams)
        found = Items()
        known: dict[str, list[Scores]] = defaultdict(list)
        for examples, batch in batches(loaded, job.inputs, makers, self.batch_size):
            scores = [scores_of(one) for one in examples]
            for one, of_one in zip(examples, scores, strict=True):
                if of_one:
                    known[one.text].append(of_one)
            _add(
                found, "accuracy/true", examples, scores, _guesses(loaded.model, batch), range(len(examples))
            )
            others, places = swapped(examples, batch)
            _add(found, "accuracy/swapped", examples, scores, _guesses(loaded.model, others), places)
        if not known:
            raise VlpipeError("downstream.answered: no question has an answer with a label")
        found.write(job.artifacts)
        num = sum(map(len, known.values()))
        prior = {
            "name": "accuracy/prior",
            "value": sum(map(best_constant, known.values())) / num,
            "num_rows": num,
        }
        job.emit(pa.Table.from_pylist([*found.results(), prior], RESULTS))


def scores_of(one: Example) -> Scores:
    """Returns label -> score of the answers to an example's question."""
    answers = as_dicts(one.row.columns["answers"])
    return {
        a["label"]: 1.0 if a["score"] is None else a["score"] for a in answers if a["question"] == one.text
    }


def best_constant(scores: Sequence[Scores]) -> float:
    """Returns the greatest sum of scores that one answer gets to these questions."""
    sums: Scores = defaultdict(float)
    for one in scores:
        for label, score in one.items():
            sums[label] += score
    return max(sums.values())


def _guesses(model: Any, batch: Batch) -> list[int]:
    """Returns the answer with the highest logit for each row."""
    import torch

    from vlpipe.models.interface.outputs import Outputs

    with torch.inference_mode():
        found: list[int] = Outputs(model, batch, grad=False).answer.argmax(1).tolist()
    return found


def _add(
    found: Items,
    metric: str,
    examples: Sequence[Example],
    scores: Sequence[Scores],
    guesses: Sequence[int],
    places: Iterable[int],
) -> None:
    for k in places:
        if scores[k]:
            found.add(metric, examples[k].item, examples[k].row.id, scores[k].get(guesses[k], 0.0))
