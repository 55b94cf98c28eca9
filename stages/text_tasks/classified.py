"""Scores of a finetuned model on one of GLUE's tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import batch_size_problems, fixed_batches
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.loading.makers.label import need_label
from vlpipe.stages.loading.makers.tasks.sentences import Sentences
from vlpipe.stages.loading.rows import Row, usable
from vlpipe.stages.text_tasks import metrics

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded

Example = tuple[list[str], float]  # one or two sentences, and the label or score


@dataclass(frozen=True, kw_only=True)
class GlueScores(GatherStage):
    """Emits RESULTS over the rows with a label: `accuracy`, `accuracy_prior` (share of the most frequent class),
    `accuracy_se`, `matthews`, and of two classes `f1`, that of class 1; of a model with one class, over the rows with a
    score, `pearson` and `spearman`. num_rows: examples.

    GLUE reports matthews of cola, accuracy and f1 of mrpc and qqp, pearson and spearman of stsb, and accuracy of the others.
    max_text_length: None for as many tokens as the model has positions. Raises VlpipeError for a label that is no class of
    the model.
    """

    NAME: ClassVar[str] = "text_tasks.classified:GlueScores"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    batch_size: int = 64
    max_text_length: int | None = None

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "text_tasks.classified", texts=TEXTS, label=pa.int32(), score=pa.float32())
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.text_capabilities import ClassifiesTexts
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [ClassifiesTexts])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.text_capabilities import ClassifiesTexts
        from vlpipe.stages.common.model import load

        model = load(self.model, self.max_text_length or 0, [ClassifiesTexts])
        column = "score" if model.model.config.num_classes == 1 else "label"
        logits, true = [], []
        for batch, num_real in fixed_batches(_examples(job, column), self.batch_size):
            logits.append(self._logits(model, [texts for texts, _ in batch])[:num_real])
            for _, value in batch[:num_real]:
                if column == "label":
                    need_label(value, logits[-1].shape[1], "text_tasks.classified")
                true.append(value)
        if not true:
            raise VlpipeError(f"text_tasks.classified: no row has a {column}")
        found = figures(np.concatenate(logits), np.array(true))
        rows = [{"name": name, "value": value, "num_rows": len(true)} for name, value in found.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _logits(self, model: Loaded, texts: list[list[str]]) -> Any:
        """(B, classes)."""
        import torch

        positions = model.model.streams()["text"]["max_positions"]
        maker = Sentences(tokenizer=model.tokenizer, max_length=self.max_text_length, max_positions=positions)
        rng = np.random.default_rng(0)
        stream = maker.collate([maker(Row("", 0, one, {}), "", rng) for one in texts])
        with torch.inference_mode():
            return model.outputs(text=stream).text_logits.float().cpu().numpy()


def figures(logits: metrics.Scores, true: metrics.Scores) -> dict[str, float]:
    """Returns the figures of logits (N, classes), or scores (N, 1), against labels or scores (N,)."""
    if logits.shape[1] == 1:
        scores = logits[:, 0].astype(np.float64)
        return {"pearson": metrics.pearson(scores, true), "spearman": metrics.spearman(scores, true)}
    guessed, labels = logits.argmax(1), true.astype(np.int64)
    accuracy = metrics.accuracy(guessed, labels)
    found = {
        "accuracy": accuracy,
        "accuracy_prior": float(np.bincount(labels).max() / len(labels)),
        "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(labels)),
        "matthews": metrics.matthews(guessed, labels),
    }
    return found | ({"f1": metrics.binary_f1(guessed, labels)} if logits.shape[1] == 2 else {})


def _examples(job: Job, column: str) -> Iterator[Example]:
    """Yields the rows that have a value in the column `label` or `score`."""
    for data in job.inputs:
        for table in data.batches(["texts", column]):
            for texts, value in zip(usable(table["texts"]), table[column].to_pylist(), strict=True):
                if value is not None:
                    yield texts, value
