"""How many answers in conversations a model gives right, from their image and from another one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.masked import PARTNERS, partnered

if TYPE_CHECKING:
    from torch import Tensor

    from vlpipe.models.interface.batch import Stream
    from vlpipe.models.interface.outputs import Outputs

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Answers(GatherStage):
    """Emits RESULTS: `accuracy/true`, the share of answers that greedy decoding gives word for word, with the answers
    before it as they should be; `accuracy/shuffled` when the model sees the image of the next sample of its batch;
    `accuracy/prior`, the share of right answers of one that gives the commonest answer to each question.

    streams: parameters of makers, as in `train.train`; the maker of `text` is one of conversations. Samples that do not
    fill a last batch are left out.
    """

    NAME: ClassVar[str] = "evaluate.written.answers:Answers"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=2)] = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.written.answers", id=pa.string())
        return RESULTS

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import PredictsNext
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [PredictsNext])

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.capabilities import PredictsNext
        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.stages.common.model import load
        from vlpipe.stages.held_out.batches import held_out_batches

        loaded = load(self.model, needs=[PredictsNext])
        right: Counter[str] = Counter()
        given: dict[Ids, Counter[Ids]] = defaultdict(Counter)
        made = held_out_batches(
            job, loaded, "evaluate.written.answers", batch_size=self.batch_size, streams=self.streams
        )
        with made as batches, torch.inference_mode():
            for batch in batches:
                out = Outputs(loaded.model, batch, grad=False)
                for question, answer in asked(out.stream("text")):
                    given[question][answer] += 1
                for partner in PARTNERS:
                    right[partner] += num_right(partnered(out, "text", partner))
        num = sum(answers.total() for answers in given.values())
        if not num:
            raise VlpipeError("evaluate.written.answers: no conversation has an answer that is not cut")
        right["prior"] = sum(max(answers.values()) for answers in given.values())
        names = (*PARTNERS, "prior")
        rows = [{"name": f"accuracy/{n}", "value": right[n] / num, "num_rows": num} for n in names]
        job.emit(pa.Table.from_pylist(rows, RESULTS))


def num_right(out: Outputs) -> int:
    """Returns how many answers have the likeliest token everywhere, each predicted from the tokens before it."""
    from vlpipe.models.interface.batch import IGNORE

    text = out.stream("text")
    learned = (text.target["ids"] != IGNORE)[:, 1:]
    hidden: Tensor = out.decoder_hidden[:, :-1]
    wrong = learned.clone()
    wrong[learned] = out.model.predict(hidden[learned]).argmax(-1) != text.data[:, 1:][learned]
    turn, found = text.extra["turn"], 0
    for number in range(1, int(turn.max()) + 1):
        is_of = turn[:, 1:] == number
        found += int((is_of.any(1) & ~(wrong & is_of).any(1)).sum())
    return found


def asked(text: Stream) -> Iterator[tuple[Ids, Ids]]:
    """Yields (the ids between the answer before and this one, the ids of this one) of each answer."""
    assert text.mask is not None
    for ids, turn, mask in zip(
        text.data.tolist(), text.extra["turn"].tolist(), text.mask.tolist(), strict=True
    ):
        question: list[int] = []
        answer: list[int] = []
        for k in range(sum(mask)):
            if turn[k] == 0:
                question.append(ids[k])
                continue
            answer.append(ids[k])
            if k + 1 == sum(mask) or turn[k + 1] != turn[k]:
                yield tuple(question), tuple(answer)
                question, answer = [], []
