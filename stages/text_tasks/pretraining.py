"""How well BERT's two pretraining tasks are solved on held-out documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.row import RESULTS, TEXTS

WORDS, PAIRS = "words", "pairs"  # the views


@dataclass(frozen=True, kw_only=True)
class Pretraining(GatherStage):
    """Emits RESULTS: of masked words `nats` per word, `top1` accuracy, `unigram_nats` and `top1_prior`; of pairs of segments
    `next_sentence`, the share that is judged right, and `next_sentence_prior`, that of the more frequent answer.

    unigram_nats: the entropy of the words that were masked, the least that any model without context can have on them. rate:
    share of the words that are masked, all by the mask token. Half of the second segments are another document's. num_rows:
    masked words, or pairs. Samples that do not fill a last batch are left out.
    """

    NAME: ClassVar[str] = "text_tasks.pretraining:Pretraining"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    rate: float = 0.15
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=2)] = 64
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "text_tasks.pretraining", id=pa.string(), texts=TEXTS)
        return RESULTS

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import FillsWords, Matches
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [FillsWords, Matches])

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.batch import IGNORE
        from vlpipe.models.interface.capabilities import FillsWords, Matches
        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.stages.common.model import load
        from vlpipe.stages.held_out.batches import held_out_batches

        loaded = load(self.model, needs=[FillsWords, Matches])
        views: dict[str, list[str | dict[str, Any]]] = {
            WORDS: [{"use": "mask_text:MaskText", "rate": self.rate, "split": [1, 0]}],
            PAIRS: ["mismatch_second:MismatchSecond"],
        }
        nats, right, truth = 0.0, 0, Counter[int]()
        judged, labels = 0, Counter[int]()
        made = held_out_batches(
            job,
            loaded,
            "text_tasks.pretraining",
            batch_size=self.batch_size,
            streams=self.streams,
            views=views,
            seed=self.seed,
        )
        with made as batches, torch.inference_mode():
            for batch in batches:
                out = Outputs(loaded.model, batch, grad=False)
                words = out.view(WORDS)
                ids = words.stream("text").target["ids"]
                chosen = ids != IGNORE
                logits = loaded.model.predict_words(words.word_hidden[chosen]).float()
                nats += float(torch.nn.functional.cross_entropy(logits, ids[chosen], reduction="sum"))
                right += int((logits.argmax(1) == ids[chosen]).sum())
                truth.update(ids[chosen].tolist())
                pairs = out.view(PAIRS)
                match = pairs.stream("text").target["match"]
                judged += int((pairs.match.argmax(1) == match).sum())
                labels.update(match.tolist())
        figures = {
            "nats": (nats / truth.total(), truth.total()),
            "top1": (right / truth.total(), truth.total()),
            "unigram_nats": (entropy(truth), truth.total()),
            "top1_prior": (max(truth.values()) / truth.total(), truth.total()),
            "next_sentence": (judged / labels.total(), labels.total()),
            "next_sentence_prior": (max(labels.values()) / labels.total(), labels.total()),
        }
        rows = [{"name": name, "value": value, "num_rows": num} for name, (value, num) in figures.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))


def entropy(counts: Mapping[Any, int]) -> float:
    """Returns the entropy in nats of a distribution that is proportional to `counts`."""
    total = sum(counts.values())
    return -sum(num / total * math.log(num / total) for num in counts.values() if num)
