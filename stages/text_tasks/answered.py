"""Scores of a finetuned model on SQuAD's questions.

The best span of all windows of a context, as in `run_squad.py` of https://github.com/google-research/bert: a token is looked
at in the window where it has most context on its poorer side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import batch_size_problems, fixed_batches
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.loading.makers.tasks.question import ANSWER_SPANS, Span, Window, windows
from vlpipe.stages.loading.rows import usable
from vlpipe.stages.text_tasks.metrics import exact, f1

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded

Logits = npt.NDArray[np.float32]  # (L, 2)
TOP = 20  # first and last tokens that are combined, the published n_best_size


@dataclass(frozen=True, kw_only=True)
class SquadScores(GatherStage):
    """Emits RESULTS, fractions from 0 to 1: `exact` and `f1` over all questions, and, where some have no answer,
    `exact/answered`, `f1/answered` and `exact/unanswered` of these kinds alone. num_rows: questions.

    Artifact predictions.json: question id -> answer, as SQuAD's script reads it. can_decline: "" is an answer if its score,
    the least of all windows, is more than `threshold` above that of the best span (SQuAD 2.0). max_text_length: None for as
    many tokens as the model has positions.
    """

    NAME: ClassVar[str] = "text_tasks.answered:SquadScores"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    can_decline: bool = False
    threshold: float = 0.0
    max_answer: Annotated[int, Field(ge=1)] = 30  # tokens
    stride: Annotated[int, Field(ge=1)] = 128
    max_question: Annotated[int, Field(ge=1)] = 64
    max_text_length: int | None = None
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        wanted = {"url": pa.string(), "texts": TEXTS, "context": pa.string(), "answers": ANSWER_SPANS}
        need(inp, "text_tasks.answered", **wanted)
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.text_capabilities import FindsSpans
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [FindsSpans])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.text_capabilities import FindsSpans
        from vlpipe.stages.common.model import load

        model = load(self.model, self.max_text_length or 0, [FindsSpans])
        said: dict[str, str] = {}
        values: list[tuple[bool, float, float]] = []  # has an answer, exact, f1
        for one, logits in self._judged(job, model):
            answer = self.answer(one.context, one.windows, logits)
            said[one.id] = answer
            values.append((bool(one.answers), exact(answer, one.answers), f1(answer, one.answers)))
        if not values:
            raise VlpipeError("text_tasks.answered: there is no question")
        text = json.dumps(said, ensure_ascii=False, indent=0)
        (Path(job.artifacts) / "predictions.json").write_text(text, encoding="utf-8")
        rows = [{"name": n, "value": v, "num_rows": num} for n, v, num in figures(values)]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _judged(self, job: Job, model: Loaded) -> Iterator[tuple[Question, list[Logits]]]:
        """Yields each question with the scores of its windows."""
        length = self.max_text_length or model.model.streams()["text"]["max_positions"]
        sizes = {"length": length, "max_question": self.max_question, "stride": self.stride}
        waiting: list[tuple[Question, list[Logits]]] = []

        def parts() -> Iterator[tuple[list[Logits], Window]]:
            for one in _questions(job, model.tokenizer, sizes):
                found: list[Logits] = []
                waiting.append((one, found))
                yield from ((found, window) for window in one.windows)

        for batch, num_real in fixed_batches(parts(), self.batch_size):
            logits = _span_logits(model, [window for _, window in batch])
            for (found, window), own in zip(batch[:num_real], logits[:num_real], strict=True):
                found.append(own[: len(window.ids)])
            while waiting and len(waiting[0][1]) == len(waiting[0][0].windows):
                yield waiting.pop(0)

    def answer(self, context: str, found: Sequence[Window], logits: Sequence[Logits]) -> str:
        """Returns the part of the context with the best score, or "" (see `can_decline`)."""
        best, chars = -np.inf, (0, 0)
        for number, (window, scores) in enumerate(zip(found, logits, strict=True)):
            for (first, last), score in self._spans(window, scores):
                if score > best and _is_best_window(found, number, first):
                    best = score
                    chars = window.chars[first][0], window.chars[last][1]
        if self.can_decline and min(float(s[0].sum()) for s in logits) - best > self.threshold:
            return ""
        return context[chars[0] : chars[1]]

    def _spans(self, window: Window, scores: Logits) -> Iterator[tuple[Span, float]]:
        """Yields spans of the window's part, by its own tokens, with their scores."""
        own = scores[window.offset : window.offset + len(window.chars)]
        firsts, lasts = (np.argsort(-own[:, at], kind="stable")[:TOP].tolist() for at in (0, 1))
        for first in firsts:
            for last in lasts:
                if first <= last < first + self.max_answer:
                    yield (first, last), float(own[first, 0] + own[last, 1])


@dataclass(frozen=True)
class Question:
    """A question of a row, with the windows of its context."""

    id: str
    context: str
    answers: list[str]
    windows: list[Window]


def _is_best_window(found: Sequence[Window], number: int, token: int) -> bool:
    """Returns whether a token, counted in window `number`, has the most context there; of equal windows, the first."""
    at = found[number].first + token

    def context(window: Window) -> float:
        left, right = at - window.first, window.first + len(window.chars) - 1 - at
        return min(left, right) + 0.01 * len(window.chars) if min(left, right) >= 0 else -1.0

    return max(range(len(found)), key=lambda k: context(found[k])) == number


def figures(values: Sequence[tuple[bool, float, float]]) -> Iterator[tuple[str, float, int]]:
    """Yields (name, mean, number of questions) of (has an answer, exact, f1) of each question."""
    answered = [v for v in values if v[0]]
    kinds = {"": list(values)}
    if 0 < len(answered) < len(values):
        kinds |= {"/answered": answered, "/unanswered": [v for v in values if not v[0]]}
    for kind, of in kinds.items():
        for at, name in ((1, "exact"), (2, "f1")):
            if (kind, name) != ("/unanswered", "f1"):  # the same as exact
                yield f"{name}{kind}", sum(v[at] for v in of) / len(of), len(of)


def _questions(job: Job, tokenizer: Any, sizes: Mapping[str, int]) -> Iterator[Question]:
    for data in job.inputs:
        for table in data.batches(["url", "texts", "context", "answers"]):
            columns = (table[name].to_pylist() for name in ("url", "context", "answers"))
            for texts, url, context, answers in zip(usable(table["texts"]), *columns, strict=True):
                if texts:
                    true = [one["text"] for one in answers or ()]
                    yield Question(url, context, true, windows(tokenizer, texts[0], context, **sizes))


def _span_logits(model: Loaded, found: Sequence[Window]) -> npt.NDArray[np.float32]:
    """(B, L, 2)."""
    import torch

    from vlpipe.models.interface.batch import Stream
    from vlpipe.stages.loading.makers.base import lengths_mask, padded

    ids = [np.asarray(one.ids, np.int64) for one in found]
    segment = padded([np.asarray(one.segment, np.int64) for one in found], 0)
    stream = Stream(padded(ids, model.tokenizer.pad), lengths_mask(ids), {"segment": segment})
    with torch.inference_mode():
        logits: npt.NDArray[np.float32] = model.outputs(text=stream).span_logits.float().cpu().numpy()
    return logits
