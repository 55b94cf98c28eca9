"""How well a model predicts the words of a caption from its image, and from another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import batch_size_problems, encode_images, fixed_batches
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.heldout import heldout, need_heldout, nothing_to_evaluate
from vlpipe.stages.inference.ahead import Ahead
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    from torch import Tensor

    from vlpipe.stages.common.model import Loaded

PARTNERS = ("true", "shuffled")


@dataclass(frozen=True, kw_only=True)
class WordsOfImages(RunsModel, GatherStage):
    """Emits RESULTS over the tokens of texts of `source`, the end token included: `nats/true` per token when the model
    sees the text's image, `nats/shuffled` when it sees the one before it in row order, and the share of right first
    guesses, `top1/true` and `top1/shuffled`.

    For models that write texts about images and encode an image apart from the text. max_text_length: tokens, start and end
    included; longer texts are cut.
    """

    NAME: ClassVar[str] = "evaluate.written.words_of_images:WordsOfImages"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    source: str = "human"
    batch_size: int = 64
    max_text_length: int = 30

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need_heldout(inp, "evaluate.written.words_of_images")
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size) + self.worker_problems()

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Generates
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Generates])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import Generates
        from vlpipe.stages.common.model import load

        model = load(self.model, self.max_text_length, [Generates], self.precision)
        rejects: list[Reject] = []
        nats, right, num = [0.0, 0.0], [0, 0], 0
        for batch, num_real in fixed_batches(self._pairs(job, model, rejects), self.batch_size):
            texts, *images = zip(*batch[:num_real], strict=True)
            for k, partners in enumerate(images):
                found = self._judged(model, list(texts), list(partners))
                nats[k], right[k] = nats[k] + found[0], right[k] + found[1]
            num += found[2]
        if not num:
            raise nothing_to_evaluate(self.source, rejects)
        job.reject(rejects)
        rows = [
            {"name": f"{name}/{partner}", "value": sums[k] / num, "num_rows": num}
            for name, sums in (("nats", nats), ("top1", right))
            for k, partner in enumerate(PARTNERS)
        ]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _pairs(self, job: Job, model: Loaded, rejects: list[Reject]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yields (text, its image's encoding, that of the image before); the first image comes last."""
        with Ahead(self.decode_workers, model.is_on_gpu) as ahead:
            images = heldout(job, self.source, model.image_size, rejects, ahead)
            first = before = None
            for (_, texts), tokens in encode_images(images, model.encode_images, self.batch_size, ahead):
                if before is None:
                    first = texts, tokens
                else:
                    yield from ((text, tokens, before) for text in texts)
                before = tokens
            if first is not None and before is not None:
                yield from ((text, first[1], before) for text in first[0])

    def _judged(self, model: Loaded, texts: list[str], images: list[Tensor]) -> tuple[float, int, int]:
        """Returns (sum of nats, number of right first guesses, number of tokens) of a batch."""
        import torch

        from vlpipe.models.interface.batch import IGNORE, Stream
        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.models.objectives.lm import next_tokens
        from vlpipe.stages.common.model import batch_of

        ids, mask = model.tokenizer.encode(texts, self.max_text_length)
        text = Stream(ids, mask.bool()).map(lambda value: value.to(model.device))
        targets = next_tokens(text)
        counted = targets != IGNORE
        given: dict[str, Any] = {model.model.ENCODINGS["image"][0]: torch.stack(images)}
        with torch.inference_mode():
            out = Outputs(model.model, batch_of({"text": text}), given=given, grad=False)
            logits = model.model.predict(out.decoder_hidden[:, :-1][counted]).float()
            wanted = targets[counted]
            nats = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        return float(nats), int((logits.argmax(1) == wanted).sum()), len(wanted)
