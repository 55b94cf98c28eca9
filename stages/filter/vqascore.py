"""VQAScore of each text: P("Yes") when a vision-language model is asked whether the image shows the text.

Lin et al., 2024, https://arxiv.org/abs/2404.01291: it tells compositions apart that CLIP's similarity does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import batch_size_problems, without
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import device, name_of, with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.inference.ahead import Ahead, Working
from vlpipe.stages.inference.stage import RunsModel
from vlpipe.stages.judging.column import with_score

if TYPE_CHECKING:
    from vlpipe.stages.vision_language.answers import Answers
    from vlpipe.stages.vision_language.model import VisionLanguageModel

TEXT_FIELD = "{text}"
NO_ANSWERS = frozenset({"blip"})  # model types whose text is a caption alone


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
    question: str = 'Does this figure show "{text}"? Please answer yes or no.'
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
        if self.question.count(TEXT_FIELD) != 1:
            problems.append(f"question must have the field {TEXT_FIELD} once, got {self.question!r}")
        return problems if self.answer else [*problems, "answer is empty"]

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
        scores = as_float32(dict(judge.probabilities(keyed)), len(texts))
        values = flat.nested(pa.array(scores, mask=np.isnan(scores)))
        return Out(without(with_columns(table, **{self.column: values}), rejects), rejects)
