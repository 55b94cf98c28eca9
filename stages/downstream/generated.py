"""Scores of answers that a model writes, or that it ranks among given ones by their likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.downstream.examples import Example, batches, makers_of, swapped
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES
from vlpipe.stages.fine_grained.items import Items
from vlpipe.stages.lists.vqa import normalised, read_labels
from vlpipe.stages.loading.makers.answer import as_dicts
from vlpipe.stages.loading.makers.downstream.asked_answer import SAID, AskedAnswer

if TYPE_CHECKING:
    from torch import Tensor

    from vlpipe.models.interface.batch import Batch, Stream
    from vlpipe.models.tokenizer import Tokenizer

ROWS = 512  # pairs of a question and a candidate that are read at once


@dataclass(frozen=True, kw_only=True)
class GeneratedAnswers(GatherStage):
    """Emits RESULTS: `accuracy/true`, the mean score of the model's answers in the column `said`, 0 for others, and
    `accuracy/swapped`, the same with the images of another row.

    The model was trained with `asked_answer:AskedAnswer` and `lm:Lm`. how: "greedy", it writes at most `max_answer` tokens;
    "rank", the likeliest of `candidates`, a JSON list, by the sum of the log probabilities of its tokens: of the `k_test`
    whose first token is likeliest, as ALBEF and BLIP (128 of 3,128). Artifact items.parquet: the score of each question.
    """

    NAME: ClassVar[str] = "downstream.generated:GeneratedAnswers"
    VERSION: ClassVar[int] = 2  # contractions have their apostrophes
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    how: Literal["greedy", "rank"] = "greedy"
    candidates: File | None = None
    k_test: Annotated[int, Field(ge=1)] = 128
    max_answer: Annotated[int, Field(ge=1)] = 10
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=2)] = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.generated", id=pa.string(), texts=TEXTS, said=SAID)
        return RESULTS

    def preflight(self) -> list[str]:
        if (self.how == "rank") != (self.candidates is not None):
            return [f"candidates: wanted with how: rank, and only with it; how is {self.how}"]
        return []

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import PredictsNext
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [PredictsNext])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import PredictsNext
        from vlpipe.stages.common.model import load

        loaded = load(self.model, needs=[PredictsNext])
        streams = {
            **self.streams,
            "text": {"use": "asked_answer:AskedAnswer", **self.streams.get("text", {})},
        }
        makers = makers_of(loaded, streams)
        text = makers["text"]
        if not isinstance(text, AskedAnswer):
            raise VlpipeError("downstream.generated: the maker of the stream `text` must be an AskedAnswer")
        told = [] if self.candidates is None else list(read_labels(self.candidates.path))
        found = Items()
        for examples, batch in batches(loaded, job.inputs, makers, self.batch_size):
            others, places = swapped(examples, batch)
            for partner, seen, of in (("true", batch, range(len(examples))), ("swapped", others, places)):
                given = self._answers(loaded.model, seen, [one.text for one in examples], text, told)
                for k in of:
                    one = examples[k]
                    found.add(f"accuracy/{partner}", one.item, one.row.id, score_of(one, given[k]))
        if not len(found):
            raise VlpipeError("downstream.generated: there is no question")
        found.write(job.artifacts)
        job.emit(pa.Table.from_pylist(found.results(), RESULTS))

    def _answers(
        self, model: Any, batch: Batch, questions: Sequence[str], maker: AskedAnswer, told: Sequence[str]
    ) -> list[str]:
        import torch

        prompts = [list(maker.before(one, maker.length - self.max_answer)) for one in questions]
        with torch.inference_mode():
            if self.how == "greedy":
                return greedy(model, batch, prompts, maker.tokenizer, self.max_answer)
            return ranked(model, batch, prompts, maker.tokenizer, told, self.k_test)


def score_of(one: Example, answer: str) -> float:
    """Returns the score of an answer to an example's question, 0 if nobody gave it."""
    given = {a["answer"]: a["score"] for a in as_dicts(one.row.columns["said"]) if a["question"] == one.text}
    found = given.get(normalised(answer), 0.0)
    return 1.0 if found is None else float(found)


def greedy(
    model: Any, batch: Batch, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer, max_answer: int
) -> list[str]:
    """Returns the answers that follow the prompts, each token the likeliest one; no special token but the end."""
    import torch

    texts = [list(one) for one in prompts]
    done = [False] * len(texts)
    never = [i for i in special_ids(tokenizer) if i != tokenizer.end]
    for _ in range(max_answer):
        logits = _next_logits(model, batch, texts, prompts, tokenizer.pad)
        logits[:, never] = -torch.inf
        for k, token in enumerate(logits.argmax(1).tolist()):
            done[k] = done[k] or token == tokenizer.end
            if not done[k]:
                texts[k].append(token)
        if all(done):
            break
    return [tokenizer.decode(t[len(p) :]) for t, p in zip(texts, prompts, strict=True)]


def ranked(
    model: Any,
    batch: Batch,
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    told: Sequence[str],
    k_test: int,
) -> list[str]:
    """Returns the likeliest of the answers `told` after each prompt, of the `k_test` with the likeliest first tokens."""
    import torch

    ids = [[*tokenizer.ids(one), tokenizer.end] for one in told]
    firsts = torch.tensor([one[0] for one in ids], device=batch.same.device)
    first = _next_logits(model, batch, prompts, prompts, tokenizer.pad).log_softmax(1)[
        :, firsts
    ]  # (B, answers)
    top = first.topk(min(k_test, len(ids)), dim=1).indices.tolist()
    pairs = [(row, answer) for row, several in enumerate(top) for answer in several]
    best: dict[int, tuple[float, int]] = {}
    for start in range(0, len(pairs), ROWS):
        part = pairs[start : start + ROWS]
        rows = torch.tensor([row for row, _ in part], device=batch.same.device)
        texts = [[*prompts[row], *ids[answer]] for row, answer in part]
        given = [prompts[row] for row, _ in part]
        hidden = _hidden(model, batch.rows(rows), texts, given, tokenizer.pad)
        for k, (row, answer) in enumerate(part):
            at = torch.arange(len(prompts[row]) - 1, len(texts[k]) - 1, device=hidden.device)
            logs = model.predict(hidden[k, at]).float().log_softmax(-1)
            total = float(logs.gather(1, torch.tensor(ids[answer], device=hidden.device)[:, None]).sum())
            best[row] = max(best.get(row, (-torch.inf, 0)), (total, answer))
    return [told[best[row][1]] for row in range(len(prompts))]


def special_ids(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of the special tokens that a tokenizer has."""
    found = []
    for role in ("pad", "unk", "cls", "sep", "mask", "dec", "enc"):
        try:
            found.append(int(getattr(tokenizer, role)))
        except ValueError:  # it has no such token
            continue
    return found


def _next_logits(
    model: Any, batch: Batch, texts: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]], pad: int
) -> Tensor:
    """Returns the logits (B, V) of the token after each text."""
    import torch

    hidden = _hidden(model, batch, texts, prompts, pad)
    last = torch.tensor([len(one) - 1 for one in texts], device=hidden.device)
    found: Tensor = model.predict(hidden[torch.arange(len(texts), device=hidden.device), last]).float()
    return found


def _hidden(
    model: Any, batch: Batch, texts: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]], pad: int
) -> Tensor:
    """Returns the hidden states (B, L, D) of texts, right-padded, which begin with `prompts`."""
    from dataclasses import replace

    from vlpipe.models.interface.outputs import Outputs

    streams = {**batch.streams, "text": _stream(texts, prompts, pad, batch.same.device)}
    hidden: Tensor = Outputs(model, replace(batch, streams=streams), grad=False).decoder_hidden
    return hidden


def _stream(
    texts: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]], pad: int, device: Any
) -> Stream:
    import numpy as np
    import torch

    from vlpipe.models.interface.batch import Stream
    from vlpipe.stages.loading.makers.base import lengths_mask, padded

    ids = [np.asarray(one, np.int64) for one in texts]
    extra = {"prompt": torch.tensor([len(one) for one in prompts])}
    return Stream(padded(ids, pad), lengths_mask(ids), extra).map(lambda value: value.to(device))
