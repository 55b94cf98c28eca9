"""The words that a model puts in place of a masked one: ALBEF's pseudo-targets. Li et al. 2021, https://arxiv.org/abs/2107.07651,
figure 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import draws, read_images
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.pictures.rows import PICTURES, denormalised, picture, shown, words_with_shares

TOP = 5


@dataclass(frozen=True, kw_only=True)
class PseudoTargets(GatherStage):
    """Emits PICTURES of the first `num` images with a text of `source`: its first such text with one word masked, and the
    five words that the model finds likeliest there, with their probabilities.

    model: one that predicts masked words of a text about an image. For ALBEF's momentum model, whose predictions are
    pseudo-targets, `{from: STEP, path: teachers/ema}` of a training with `keep_teachers: true`. Which token is masked is
    drawn by `seed` and the row's id. Texts without a word are left out.
    """

    NAME: ClassVar[str] = "pictures.pseudo_targets:PseudoTargets"
    ROWS_ARE: ClassVar[str] = "pictures"
    TORCH: ClassVar[bool] = True

    model: Weights
    source: str = "human"
    max_text_length: Annotated[int, Field(ge=3)] = 30
    num: Annotated[int, Field(ge=1)] = 12
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "pictures.pseudo_targets", id=pa.string(), texts=TEXTS, image=pa.binary())
        return PICTURES

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import FillsWords
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [FillsWords])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import FillsWords
        from vlpipe.stages.common.model import load

        model = load(self.model, self.max_text_length, [FillsWords])
        rejects: list[Reject] = []
        count = 0
        for data in job.inputs:
            for table in data.batches(["id", "texts"], ["image"]):
                ids, texts = table["id"].to_pylist(), table["texts"].to_pylist()
                for row, pixels in read_images(table, model.image_size, rejects):
                    own = [t["text"] for t in texts[row] or () if t["source"] == self.source]
                    lines = self._lines(model, ids[row], own[0], pixels) if own else []
                    if lines:
                        panel = ("image", shown(denormalised(pixels)))
                        one = picture(ids[row], [ids[row]], [panel], title=lines[0], lines=lines[1:])
                        job.emit(pa.Table.from_pylist([one], PICTURES))
                        count += 1
                    if count == self.num:
                        job.reject(rejects)
                        return
        job.reject(rejects)

    def _lines(self, model: Any, id_: str, text: str, pixels: Any) -> list[str]:
        """Returns the text with its masked word, the true word, and the five; empty for a text without words."""
        import torch

        from vlpipe.models.interface.batch import Stream

        tokenizer = model.tokenizer
        ids, mask = tokenizer.encode([text], self.max_text_length)
        places = np.flatnonzero(np.isin(ids[0].numpy(), tokenizer.plain_ids) & (mask[0].numpy() > 0))
        if not len(places):
            return []
        at = int(places[int(draws(self.seed, [id_])[0] % np.uint64(len(places)))])
        true = int(ids[0, at])
        ids[0, at] = tokenizer.mask
        with torch.inference_mode():
            out = model.outputs(text=Stream(ids, mask.bool()), image=Stream(torch.as_tensor(pixels)[None]))
            shares = model.model.predict_words(out.word_hidden[:, at]).float().softmax(1)[0]
        best = shares.topk(min(TOP, len(shares)))
        found = {
            tokenizer.tokens[i]: value
            for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        }
        last = int(mask[0].sum())
        before, after = (tokenizer.decode(part.tolist()) for part in (ids[0, :at], ids[0, at + 1 : last]))
        title = " ".join(part for part in (before, "[MASK]", after) if part)
        return [
            title,
            words_with_shares(found),
            f"masked: {tokenizer.tokens[true]}, {100 * float(shares[true]):.1f} %",
        ]
