"""Back-translations of texts by two models of transformers: Sennrich et al. 2016, https://arxiv.org/abs/1511.06709.

UNIMO's true rewrites: Li et al. 2021, https://arxiv.org/abs/2012.15409, section 2.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import batch_size_problems, fixed_batches
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import load_model, pretrained, with_columns
from vlpipe.stages.common.texts import FlatTexts

TRANSLATIONS = pa.list_(pa.list_(pa.string()))  # of each text of the row; null for a dropped text


@dataclass(frozen=True, kw_only=True)
class BackTranslations(MapStage):
    """Adds `column` (TRANSLATIONS): for each kept text of `sources` ([]: of all) up to `num` texts, its translation by
    `forward` translated back by `backward`, best first; those equal to it but for case and spaces are left out.

    forward, backward: folders of transformers with a tokenizer, sequence-to-sequence models such as Marian's opus-mt-en-de
    and opus-mt-de-en. forward gives one translation, backward `num` of `num_beams` beams. A text and a translation are cut
    after `max_length` tokens; memory is that of `batch_size` texts. Counts: `translated`, `same`.
    """

    NAME: ClassVar[str] = "back_translation.translate:BackTranslations"
    VERSION: ClassVar[int] = 2  # 2: batches of one shape
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True

    forward: Weights
    backward: Weights
    column: str = "back_translations"
    sources: tuple[str, ...] = ()
    num: Annotated[int, Field(ge=1)] = 1
    num_beams: Annotated[int, Field(ge=1)] = 4
    max_length: Annotated[int, Field(ge=2)] = 64
    batch_size: int = 16

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "back_translation.translate", id=pa.string(), texts=TEXTS)
        return with_field(inp, pa.field(self.column, TRANSLATIONS))

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size)
        if self.num > self.num_beams:
            problems.append(f"num must be at most num_beams = {self.num_beams}, got {self.num}")
        return problems

    @contextmanager
    def open(self) -> Iterator[Work]:
        there, back = (
            Translator(one, self.num_beams, self.max_length) for one in (self.forward, self.backward)
        )

        def work(rows: pa.Table) -> Out:
            flat = FlatTexts(rows["texts"])
            wanted = (flat.still_in(self.sources) if self.sources else flat.kept()).tolist()
            texts = [text or "" for text in flat.field("text").to_pylist()]
            ours = [text for text, is_in in zip(texts, wanted, strict=True) if is_in and text.strip()]
            made = iter(self._translated(there, back, ours))
            found = [
                (next(made) if text.strip() else []) if is_in else None
                for text, is_in in zip(texts, wanted, strict=True)
            ]
            different = [
                one if one is None else list(dict.fromkeys(new for new in one if folded(new) != folded(text)))
                for one, text in zip(found, texts, strict=True)
            ]
            column = flat.nested(pa.array(different, pa.list_(pa.string())))
            counts = {"translated": len(ours), "same": sum(one == [] for one in different)}
            return Out(with_columns(rows, **{self.column: column}), counts=counts)

        yield work

    def _translated(self, there: Translator, back: Translator, texts: Sequence[str]) -> Iterator[list[str]]:
        for batch, num_real in fixed_batches(texts, self.batch_size):
            abroad = [one for (one,) in there(batch, 1)]
            yield from back(abroad, self.num)[:num_real]


class Translator:
    """A sequence-to-sequence model of transformers and its tokenizer. Beam search draws nothing at random."""

    def __init__(self, weights: Weights, num_beams: int, max_length: int) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self._model: Any = load_model(AutoModelForSeq2SeqLM, weights)
        self._tokenizer: Any = pretrained(AutoTokenizer, weights.path)
        self._options = {"num_beams": num_beams, "max_new_tokens": max_length, "do_sample": False}
        self._max_length = max_length

    def __call__(self, texts: Sequence[str], num: int) -> list[list[str]]:
        """Returns `num` translations of each text, best first."""
        import torch

        given = self._tokenizer(
            list(texts),
            return_tensors="pt",
            padding="max_length",  # one shape, so that a translation does not depend on the texts beside it
            truncation=True,
            max_length=self._max_length,
        )
        inputs = {name: given[name].to(self._model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            ids = self._model.generate(**inputs, num_return_sequences=num, **self._options)
        found = [one.strip() for one in self._tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return [found[k : k + num] for k in range(0, len(found), num)]


def folded(text: str) -> str:
    """Returns the text without case and with single spaces."""
    return " ".join(text.casefold().split())
