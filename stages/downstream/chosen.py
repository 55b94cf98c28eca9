"""Scores of models that choose one of several texts: VCR, multiple-choice questions about videos."""

from __future__ import annotations

from collections import Counter, defaultdict
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
from vlpipe.stages.loading.makers.downstream.choices import CHOICES, question_of

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Batch

ALL = "all"
Hits = dict[
    str, dict[str, tuple[str, bool]]
]  # name of a question -> task -> row id, whether it is answered right


@dataclass(frozen=True, kw_only=True)
class ChoiceScores(GatherStage):
    """Emits RESULTS: `accuracy/TASK/true`, the share of questions of a task whose right text has the highest score;
    `accuracy/TASK/swapped`, the same with the images of another row; `accuracy/TASK/prior`, of always the same place.

    With several tasks, `accuracy/all/true` and `/swapped`: the share of names of which each task's question is right. VCR's
    tasks are answer (Q->A) and rationale (QA->R, given the right answer), and all is Q->AR. Questions without label are left
    out. Artifact items.parquet: 1 or 0 for each question. streams: parameters of makers, as in `train.train`.
    """

    NAME: ClassVar[str] = "downstream.chosen:ChoiceScores"
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=2)] = 32

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.chosen", id=pa.string(), texts=TEXTS, choices=CHOICES)
        return RESULTS

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.joint_capabilities import Chooses
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Chooses])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.joint_capabilities import Chooses
        from vlpipe.stages.common.model import load

        loaded = load(self.model, needs=[Chooses])
        makers = makers_of(loaded, self.streams)
        hits: dict[str, Hits] = {"true": defaultdict(dict), "swapped": defaultdict(dict)}
        places: dict[str, Counter[int]] = defaultdict(Counter)
        for examples, batch in batches(loaded, job.inputs, makers, self.batch_size):
            asked = [question_of(one.row, one.text) for one in examples]
            for one in asked:
                if one["label"] is not None:
                    places[one["task"]][one["label"]] += 1
            _add(hits["true"], examples, asked, _guesses(loaded.model, batch), range(len(examples)))
            others, there = swapped(examples, batch)
            _add(hits["swapped"], examples, asked, _guesses(loaded.model, others), there)
        if not places:
            raise VlpipeError("downstream.chosen: no question has a label")
        found = Items()
        for partner, of_names in hits.items():
            for task, name, row, is_hit in figures(of_names, list(places)):
                found.add(f"accuracy/{task}/{partner}", name, row, is_hit)
        found.write(job.artifacts)
        prior = [
            {"name": f"accuracy/{task}/prior", "value": max(of.values()) / of.total(), "num_rows": of.total()}
            for task, of in places.items()
        ]
        job.emit(pa.Table.from_pylist([*found.results(), *prior], RESULTS))


def figures(hits: Hits, tasks: Sequence[str]) -> Iterable[tuple[str, str, str, bool]]:
    """Yields (task, name, row id, whether it is right) of each question, and of each name with all of several tasks."""
    for name, of_task in hits.items():
        for task, (row, is_hit) in of_task.items():
            yield task, name, row, is_hit
        if len(tasks) > 1 and len(of_task) == len(tasks):
            yield ALL, name, next(iter(of_task.values()))[0], all(is_hit for _, is_hit in of_task.values())


def _guesses(model: Any, batch: Batch) -> list[int]:
    """Returns the place of the text with the highest score for each row."""
    import torch

    from vlpipe.models.interface.outputs import Outputs

    with torch.inference_mode():
        found: list[int] = Outputs(model, batch, grad=False).choice_scores.argmax(1).tolist()
    return found


def _add(
    hits: Hits,
    examples: Sequence[Example],
    asked: Sequence[Mapping[str, Any]],
    guesses: Sequence[int],
    places: Iterable[int],
) -> None:
    for k in places:
        one = asked[k]
        if one["label"] is None:
            continue
        if one["task"] in hits[one["name"]]:
            raise VlpipeError(
                f"downstream.chosen: two questions of task {one['task']!r} have the name {one['name']!r}"
            )
        hits[one["name"]][one["task"]] = examples[k].row.id, guesses[k] == one["label"]
