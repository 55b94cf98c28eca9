"""Language identification: language and confidence of each text, as columns for rules.

`py3langid` (97 languages, 4.6 MB, in its wheel) needs no download. DataComp used fastText's lid.176 (131 MB, or 0.9 MB as
.ftz; CC-BY-SA, not included). `fasttext-predict` reads it, as fastText's own package is archived and has no wheel.
Both are inaccurate on texts of a few words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.engine.worker.device import device_of_step
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import batch_size_problems, fixed_batches
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.rule import scored
from vlpipe.stages.common.scores import name_of, pretrained, with_columns
from vlpipe.stages.common.texts import FlatTexts

FASTTEXT = (".bin", ".ftz")
Identify = Callable[
    [Sequence[str]], list[tuple[str, float]]
]  # texts -> (language, confidence from 0 to 1) of each


@dataclass(frozen=True, kw_only=True)
class Language(MapStage):
    """Adds `language` (ISO 639-1 if the model's labels are) and `language_score` (0 to 1) per text; null for empty texts.

    model: a fastText .bin or .ftz file, or a transformers text classifier (folder or hub id) whose labels are
    languages; default: py3langid. encoder: the model's name in rules; default: py3langid, the file's stem, the hub id or
    the folder's name. max_length: in tokens, for transformers only.
    """

    NAME: ClassVar[str] = "filter.language:Language"
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"encoder"})

    model: Weights | None = None
    encoder: str = ""
    batch_size: int = 64
    max_length: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.language", id=pa.string(), texts=TEXTS)
        name = name_of(self.model, self.encoder, default="py3langid", endings=FASTTEXT)
        inp = with_field(inp, scored("language", pa.list_(pa.string()), name))
        return with_field(inp, scored("language_score", pa.list_(pa.float32()), name))

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    @contextmanager
    def open(self) -> Iterator[Work]:
        if self.model is None:
            identify = py3langid()
        elif self.model.path.endswith(FASTTEXT):
            identify = fasttext(self.model.path)
        else:
            identify = classifier(self.model.path, self.batch_size, self.max_length)

        def work(rows: pa.Table) -> pa.Table:
            texts = FlatTexts(rows["texts"])
            values = texts.field("text").to_pylist()
            answers = iter(identify([t for t in values if t and t.strip()]))
            found = [next(answers) if t and t.strip() else (None, None) for t in values]
            languages = pa.array([language for language, _ in found], pa.string())
            scores = pa.array([score for _, score in found], pa.float32())
            return with_columns(rows, language=texts.nested(languages), language_score=texts.nested(scores))

        yield work


def py3langid() -> Identify:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise VlpipeError("filter.language needs py3langid: pip install 'vlpipe[web]'") from error
    one = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
        found = [one.classify(text) for text in texts]
        return [(language, float(score)) for language, score in found]

    return identify


def fasttext(path: str) -> Identify:
    try:
        from fasttext import load_model
    except ImportError as error:
        raise VlpipeError(
            "filter.language reads fastText models with fasttext-predict: pip install 'vlpipe[web]'"
        ) from error
    if not Path(path).is_file():
        raise VlpipeError(f"filter.language: there is no fastText model {path}")
    model = load_model(path)

    def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
        found = [model.predict(" ".join(text.split())) for text in texts]
        # fastText's softmax may exceed 1 by a rounding error
        return [(labels[0].removeprefix("__label__"), min(1.0, float(p[0]))) for labels, p in found]

    return identify


def classifier(folder: str, batch_size: int, max_length: int) -> Identify:
    """Uses a transformers sequence classifier; batches have the fixed shape (batch_size, max_length)."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = torch.device(device_of_step())
    tokenizer = pretrained(AutoTokenizer, folder)
    model = pretrained(AutoModelForSequenceClassification, folder).eval().to(device)

    def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
        found: list[tuple[str, float]] = []
        for batch, num_real in fixed_batches(texts, batch_size):
            tokens = tokenizer(
                batch, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
            )
            with torch.inference_mode():
                probs = model(**tokens.to(device)).logits.float().softmax(1).cpu()[:num_real]
            scores, labels = probs.max(1)
            names = [model.config.id2label[label] for label in labels.tolist()]
            found += zip(names, scores.tolist(), strict=True)
        return found

    return identify
