"""Language identification: language and confidence of each text, as columns for rules.

`py3langid` (BSD-3-Clause; 4.6 MB with its model, no download) knows 142 labels. Among all of them, it takes a third of
English alt-text for Nigerian Pidgin, Latin or Luxembourgish: a caption of five words has little evidence. The default is
therefore restricted to the languages of the web, and starts from the odds that a web text is English; benchmarks/language.md
compares this with other identifiers. DataComp used fastText's lid.176 (131 MB, or 0.9 MB as .ftz; CC BY-SA 3.0, not
included). `fasttext-predict` reads it, as fastText's own package is archived and has no wheel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.engine.worker.device import device_of_step
from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import batch_size_problems, fixed_batches
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.rule import scored
from vlpipe.stages.common.scores import name_of, pretrained, with_columns
from vlpipe.stages.common.texts import FlatTexts

FASTTEXT = (".bin", ".ftz")
# Languages with many web pages. Each that is left out no longer draws English texts to it, and its own texts to English.
_CODES = """
    ar az bg bn ca cs da de el en es et eu fa fi fr gl he hi hr hu id it ja ka ko lt lv mk ms nl no pl pt ro ru sk sl sr sv
    ta th tr uk ur vi zh
"""
WEB_LANGUAGES: tuple[str, ...] = tuple(_CODES.split())
WEB_PRIOR: Mapping[str, float] = {"en": 5.0}  # chosen in benchmarks/language.py
Identify = Callable[
    [Sequence[str]], list[tuple[str, float]]
]  # texts -> (language, confidence from 0 to 1) of each


@dataclass(frozen=True, kw_only=True)
class Language(MapStage):
    """Adds `language` (ISO 639-1 if the model's labels are) and `language_score` (0 to 1) per text; null for empty texts.

    model: a fastText .bin or .ftz file, or a transformers text classifier (folder or hub id) whose labels are
    languages; default: py3langid. encoder: the model's name in rules; default: py3langid, the file's stem, the hub id or
    the folder's name. max_length: in tokens, for transformers only.
    languages, prior: for py3langid only. languages: the labels that a text can get; default: WEB_LANGUAGES. A text in a
    language that is not among them gets the label of a similar one. prior: how frequent a language is in the list, relative
    to those not named; default: `{en: 5}`. A text without evidence, such as a number, gets the most frequent language.
    """

    NAME: ClassVar[str] = "filter.language:Language"
    VERSION: ClassVar[int] = 2
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"encoder"})

    model: Weights | None = None
    encoder: str = ""
    batch_size: int = 64
    max_length: int = 64
    languages: tuple[str, ...] | None = None
    prior: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.language", id=pa.string(), texts=TEXTS)
        name = name_of(self.model, self.encoder, default="py3langid", endings=FASTTEXT)
        inp = with_field(inp, scored("language", pa.list_(pa.string()), name))
        return with_field(inp, scored("language_score", pa.list_(pa.float32()), name))

    def preflight(self) -> list[str]:
        return [*batch_size_problems(self.batch_size), *self._label_problems()]

    def _label_problems(self) -> list[str]:
        given = [name for name in ("languages", "prior") if getattr(self, name) is not None]
        if self.model is not None and given:
            return [
                f"{' and '.join(given)} can be set only for py3langid, but this step sets `model`; remove one of them"
            ]
        if self.languages is not None and len(set(self.languages)) < max(2, len(self.languages)):
            return [f"languages: wanted two or more different languages, got {list(self.languages)}"]
        other = sorted(set(self.prior or ()) - set(self._languages()))
        return (
            [f"prior: {', '.join(other)} is not in `languages`; add it there, or remove it here"]
            if other
            else []
        )

    def _languages(self) -> tuple[str, ...]:
        return WEB_LANGUAGES if self.languages is None else self.languages

    @contextmanager
    def open(self) -> Iterator[Work]:
        if self.model is None:
            identify = py3langid(self._languages(), WEB_PRIOR if self.prior is None else self.prior)
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


def py3langid(languages: Sequence[str], prior: Mapping[str, float]) -> Identify:
    """Uses py3langid with these labels. Its probabilities are multiplied by `prior` (1 if not named) and sum up to 1 again.

    Raises VlpipeError if py3langid is missing or does not know a language.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise VlpipeError("filter.language needs py3langid: pip install 'vlpipe[web]'") from error
    one = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    unknown = [name for name in languages if name not in one.labels]
    if unknown:
        hint = did_you_mean(unknown[0], one.labels)
        raise VlpipeError(f"filter.language: py3langid does not know the language {unknown[0]!r}{hint}")
    one.set_languages(languages)

    def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
        found: list[tuple[str, float]] = []
        for text in texts:
            weighted = {name: p * prior.get(name, 1.0) for name, p in one.rank(text)}
            best = max(weighted, key=weighted.__getitem__)
            found.append((best, weighted[best] / sum(weighted.values())))
        return found

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
