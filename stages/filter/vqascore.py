"""VQAScore of each text: P("Yes") when a vision-language model is asked whether the image shows the text.

Lin et al., 2024, https://arxiv.org/abs/2404.01291: it tells compositions apart that CLIP's similarity does not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.engine.records.answers import Answer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import batch_size_problems, without
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import device, name_of, not_finite, with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.endpoint.ask import Result
from vlpipe.stages.endpoint.asking import Asking, Line, asked_rows, fault_in
from vlpipe.stages.endpoint.prompts import Builder, Request, as_field
from vlpipe.stages.endpoint.reply import probability_of
from vlpipe.stages.endpoint.stage import AsksServer
from vlpipe.stages.inference.ahead import Ahead, Working
from vlpipe.stages.inference.stage import RunsModel
from vlpipe.stages.judging.column import with_score

if TYPE_CHECKING:
    from vlpipe.stages.vision_language.answers import Answers
    from vlpipe.stages.vision_language.model import VisionLanguageModel

TEXT_FIELD = "{text}"
QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'  # as the paper's code asks
NO_ANSWERS = frozenset({"blip"})  # model types whose text is a caption alone
TOP_LOGPROBS = 20  # as many as OpenAI's servers and vLLM give
OURS = frozenset({"model", "messages", "max_tokens", "logprobs", "top_logprobs", "stream", "n"})


@dataclass(frozen=True, kw_only=True)
class VqaScore(RunsModel, MapStage):
    """Adds `column`: list<float32>, the probability of `answer` to `question` about the image, 0 to 1, for each text.

    model: a folder or hub id of transformers' image-text-to-text classes that answers questions. question: with the field
    {text}; it and the answer are by default those of the paper's code. against: another answer, such as `No`; the score is
    then P(answer) as a share of both, which compares better where a model words its answers differently.
    encoder: the judge's name in rules; default: the hub id or the folder's name. sources: whose texts are scored; empty:
    all. Texts that are dropped get null and are not computed. A row with a text to score whose image cannot be decoded is
    rejected (fault).
    """

    NAME: ClassVar[str] = "filter.vqascore:VqaScore"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = RunsModel.NOT_IN_KEY | {"encoder"}

    model: Weights
    column: str = "vqa_score"
    question: str = QUESTION
    answer: str = "Yes"
    against: str = ""
    encoder: str = ""
    sources: tuple[str, ...] = ()
    batch_size: int = 16

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.vqascore", id=pa.string(), texts=TEXTS, image=pa.binary())
        return with_score(inp, self.column, name_of(self.model, self.encoder), "filter.vqascore")

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size) + self.worker_problems()
        return problems + question_problems(self.question, self.answer)

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.stages.vision_language.answers import LocalAnswers, answer_ids
        from vlpipe.stages.vision_language.model import load

        model = load(self.model, self.precision)
        if model.kind in NO_ANSWERS:
            raise VlpipeError(
                f"filter.vqascore: a {model.kind} captioner answers no questions; filter.itm scores with BLIP"
            )
        for answer in filter(None, (self.answer, self.against)):
            answer_ids(model, answer)  # raises if the model cannot say it
        judge = LocalAnswers(model, self.batch_size, self.answer, self.against)
        yield Working(partial(self._score, model, judge), self.decode_workers, device().type == "cuda")

    @contextmanager
    def trials(self) -> Iterator[Callable[[int], None]]:
        from PIL import Image

        from vlpipe.stages.vision_language.answers import log_probabilities
        from vlpipe.stages.vision_language.model import load

        model = load(self.model, self.precision)
        asked = model.worded(self.question.replace(TEXT_FIELD, "word " * 20))
        (arrays,) = model.prepared(Image.new("RGB", (336, 336)), [asked])

        def compute(size: int) -> None:
            log_probabilities(model, [arrays] * size, self.answer)

        yield compute

    def _score(self, model: VisionLanguageModel, judge: Answers, table: pa.Table, ahead: Ahead) -> Out:
        from vlpipe.stages.vision_language.answers import as_float32
        from vlpipe.stages.vision_language.inputs import read_inputs

        rejects: list[Reject] = []
        flat = FlatTexts(table["texts"])
        texts = flat.field("text").to_pylist()
        judged = flat.still_in(self.sources) if self.sources else flat.kept()
        of_row: list[list[int]] = [[] for _ in range(table.num_rows)]
        for at in np.flatnonzero(judged).tolist():
            of_row[int(flat.row[at])].append(at)
        asked = [
            [model.worded(self.question.replace(TEXT_FIELD, model.plain(texts[at]))) for at in mine]
            for mine in of_row
        ]
        keyed = (
            (at, arrays)
            for row, each in read_inputs(table, model, asked, rejects, ahead)
            for at, arrays in zip(of_row[row], each, strict=True)
        )
        found = dict(judge.probabilities(keyed))
        rejects += not_finite(
            table["id"], (int(flat.row[at]) for at in found if not math.isfinite(found[at]))
        )
        scores = as_float32(found, len(texts))
        values = flat.nested(pa.array(scores, mask=np.isnan(scores)))
        return Out(without(with_columns(table, **{self.column: values}), rejects), rejects)


def question_problems(question: str, answer: str) -> list[str]:
    """Returns error texts for `preflight`; empty if the question and its answer are possible."""
    found = []
    if question.count(TEXT_FIELD) != 1:
        found.append(f"question must have the field {TEXT_FIELD} once, got {question!r}")
    return found if answer else [*found, "answer is empty"]


@dataclass(frozen=True, kw_only=True)
class EndpointVqaScore(AsksServer, MapStage):
    """Adds `column`: list<float32>, as `VqaScore`, by a server that gives log-probabilities: vLLM, SGLang, some services.

    The server, what is sent, and when it is given up: `endpoint.stage:AsksServer`. column, question, answer, against,
    sources: as in `VqaScore`; the answer must be one token of the model. Its probability is that of the first token; tokens
    that differ in case and spaces alone are added up, and those that are not among the 20 likeliest count 0. encoder: the
    judge's name in rules; default: `model`, with its revision. system: the system message; more: further fields of the
    request's body.
    Each answer is recorded under the row's id and the request, and never asked again; equal texts of a row are asked about
    once. Texts that are dropped get null and are not asked about. So do texts without an answer, which are counted as
    `scores_timeout` and so on (`no_logprobs`: an answer without log-probabilities). Rows are rejected (fault) if their image
    cannot be decoded, or if the server refuses it.
    """

    NAME: ClassVar[str] = "filter.vqascore:EndpointVqaScore"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True  # what is learned about the server lasts from shard to shard
    NOT_IN_KEY: ClassVar[frozenset[str]] = AsksServer.NOT_IN_KEY | {"encoder"}

    column: str = "vqa_score"
    question: str = QUESTION
    answer: str = "Yes"
    against: str = ""
    encoder: str = ""
    sources: tuple[str, ...] = ()
    system: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.vqascore", id=pa.string(), texts=TEXTS, image=pa.binary())
        return with_score(inp, self.column, self.encoder or self.full_model, "filter.vqascore")

    def preflight(self) -> list[str]:
        problems = self.server_problems() + question_problems(self.question, self.answer)
        if taken := sorted(OURS & set(self.more)):
            problems.append(f"more: {', '.join(taken)} cannot be set there")
        return problems

    @contextmanager
    def open(self) -> Iterator[Work]:
        with self.line(needs_logprobs=True) as line:
            yield _Scores(self, line)

    def builder(self) -> Builder:
        """Returns what builds the requests: one token, with the log-probabilities of the likeliest."""
        wanted = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS, "temperature": 0.0}
        image = {name: getattr(self.sent, name) for name in ("max_side", "format", "quality")}
        return Builder({"model": self.model, **wanted, **self.more}, self.system, image, self.revision)


class _Scores(Asking):
    """The function of `EndpointVqaScore`."""

    def __init__(self, stage: EndpointVqaScore, line: Line) -> None:
        super().__init__(line)
        self._stage, self._builder = stage, stage.builder()

    def _questions(self, batch: pa.Table) -> list[dict[str, list[int]]]:
        """Returns, for each row, its questions, and the numbers of the texts that each is about."""
        flat = FlatTexts(batch["texts"])
        texts, sources = flat.field("text").to_pylist(), self._stage.sources
        found: list[dict[str, list[int]]] = [{} for _ in range(batch.num_rows)]
        for at in np.flatnonzero(flat.still_in(sources) if sources else flat.kept()).tolist():
            question = self._stage.question.replace(TEXT_FIELD, as_field(texts[at]))
            found[int(flat.row[at])].setdefault(question, []).append(at)
        return found

    def requests(self, batch: pa.Table) -> list[Request]:
        made = []
        for (row, digest), questions in zip(asked_rows(batch), self._questions(batch), strict=True):
            for question in questions:
                hash_ = self._builder.hash(question, None, digest, 0)
                made.append(Request(row, hash_, *self._builder.around(question, None)))
        return made

    def out(self, batch: pa.Table, results: Sequence[Result]) -> Out:
        flat, ids, left = FlatTexts(batch["texts"]), batch["id"].to_pylist(), iter(results)
        scores = np.full(len(flat.row), np.nan, np.float32)
        rejects: list[Reject] = []
        counts: Counter[str] = Counter()
        for id_, questions in zip(ids, self._questions(batch), strict=True):
            mine = [next(left) for _ in questions]
            counts.update(self.tokens(mine))
            fault = fault_in(mine, rejects_unanswered=self._stage.unanswered == "reject")
            if fault is not None:
                rejects.append(Reject(id_, "fault", fault.why, fault.detail))
                continue
            for places, result in zip(questions.values(), mine, strict=True):
                score, why = self._score(result)
                counts[f"scores_{why or 'good'}"] += len(places)
                scores[places] = np.nan if score is None else score
        values = flat.nested(pa.array(scores, mask=np.isnan(scores)))
        table = with_columns(batch, **{self._stage.column: values})
        return Out(without(table, rejects), rejects, counts=counts)

    def _score(self, result: Result) -> tuple[float | None, str]:
        """Returns the probability that an answer gives, and why there is none."""
        if not isinstance(result, Answer):
            return None, result.why
        if result.status != 200:
            return None, f"http_{result.status}"
        score = probability_of(result, self._stage.answer, self._stage.against)
        return score, "" if score is not None else "no_logprobs"
