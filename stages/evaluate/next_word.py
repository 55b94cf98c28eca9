"""How well a language model predicts the next word of held-out texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import batch_size_problems, fixed_batches
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.common.texts import texts_of

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded


@dataclass(frozen=True, kw_only=True)
class NextWord(GatherStage):
    """Emits RESULTS over the tokens of texts of `source`, the end token included: `nats` per token, `top1` accuracy, and
    `top1_prior`, that of the most frequent token.

    For models that write texts without an image (GPT). max_text_length: tokens, start and end included; longer ones are cut.
    """

    NAME: ClassVar[str] = "evaluate.next_word:NextWord"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    source: str = "human"
    batch_size: int = 64
    max_text_length: int = 30

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.next_word", texts=TEXTS)
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import GeneratesAlone
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [GeneratesAlone])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import GeneratesAlone
        from vlpipe.stages.common.model import load

        model = load(self.model, self.max_text_length, [GeneratesAlone])
        nats, right, num, tokens = 0.0, 0, 0, Counter[int]()
        for batch, num_real in fixed_batches(texts_of(job.inputs, self.source), self.batch_size):
            found = self._judged(model, batch[:num_real])
            nats, right, num = nats + found[0], right + found[1], num + len(found[2])
            tokens.update(found[2])
        if not num:
            raise VlpipeError(f"evaluate.next_word: no text of source {self.source!r}")
        values = {"nats": nats / num, "top1": right / num, "top1_prior": max(tokens.values()) / num}
        rows = [{"name": name, "value": value, "num_rows": num} for name, value in values.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _judged(self, model: Loaded, texts: list[str]) -> tuple[float, int, list[int]]:
        """Returns (sum of nats, number of right first guesses, the tokens) of a batch."""
        import torch

        from vlpipe.models.interface.batch import IGNORE, Stream
        from vlpipe.models.objectives.lm import next_tokens

        ids, mask = model.tokenizer.encode(texts, self.max_text_length)
        text = Stream(ids, mask.bool())
        targets = next_tokens(text).to(model.device)
        counted = targets != IGNORE
        with torch.inference_mode():
            hidden: Any = model.outputs(text=text).decoder_hidden[:, :-1]
            logits = model.model.predict(hidden[counted]).float()
            wanted = targets[counted]
            nats = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        return float(nats), int((logits.argmax(1) == wanted).sum()), wanted.tolist()
