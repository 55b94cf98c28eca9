"""CapFilt's filter: P(match) of each text and its image, by the image-text matching (ITM) head.

BLIP drops every web and synthetic text below 0.5 (Li et al., 2022, https://arxiv.org/abs/2201.12086, and the
authors in salesforce/BLIP issues 46 and 54). The score is stored with the text, so another threshold can be applied
later without inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.stages.common.batches import (
    batch_size_problems,
    encode_images,
    fixed_batches,
    made_up,
    read_images,
    with_texts,
    without,
)
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.rule import scored
from vlpipe.stages.common.scores import not_finite, with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.inference.ahead import Ahead, Working
from vlpipe.stages.inference.stage import RunsModel
from vlpipe.stages.judging.column import with_score

if TYPE_CHECKING:
    import torch

    from vlpipe.stages.common.model import Loaded

K = TypeVar("K")
NOT_MATCHED = "not_matched"
ITM = (
    "itm"  # encoder name of `texts.score` in rules; one name for all ITM heads, as the score is a probability
)


@dataclass(frozen=True, kw_only=True)
class ItmFilter(RunsModel, MapStage):
    """Sets `score`, `kept` and `why` (`not_matched` below `threshold`) of texts of `sources`; no text is removed.

    Texts of other sources get no score. Texts dropped by another filter stay dropped and are not scored; texts
    dropped by an earlier `ItmFilter` are scored again. Rows with an undecodable image are rejected (fault), and those with a
    score that is no finite number (not_finite).
    Ablations in BLIP's Table 1: F (filter only) is this step without a caption step before it, C (captioner only) is a
    caption step without this one.
    """

    NAME: ClassVar[str] = "filter.itm:ItmFilter"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True

    model: Weights
    threshold: float = 0.5
    sources: tuple[str, ...] = ("web", "synth")
    batch_size: int = 64
    max_text_length: int = 30  # tokens, including [CLS] and [SEP]; as in BLIP

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.itm", id=pa.string(), texts=TEXTS, image=pa.binary())
        return with_field(inp, scored("texts", TEXTS, ITM))

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size) + self.worker_problems()
        return problems + threshold_problems(self.threshold)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Matches
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Matches])

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.models.interface.capabilities import Matches
        from vlpipe.stages.common.model import load

        model = load(self.model, self.max_text_length, needs=[Matches], precision=self.precision)

        yield Working(partial(self._judge, model), self.decode_workers, model.is_on_gpu)

    @contextmanager
    def trials(self) -> Iterator[Callable[[int], None]]:
        from vlpipe.stages.common.model import load

        model = load(self.model, self.max_text_length, precision=self.precision)

        def compute(size: int) -> None:
            images = model.encode_images(made_up(size, model.image_size))
            pairs = ((k, tokens, "word " * self.max_text_length) for k, tokens in enumerate(images))
            assert len(list(match_logits(model, pairs, size, self.max_text_length))) == size

        yield compute

    def _judge(self, model: Loaded, table: pa.Table, ahead: Ahead) -> Out:
        rejects: list[Reject] = []
        texts: list[list[dict[str, Any]]] = [[dict(t) for t in ts or ()] for ts in table["texts"].to_pylist()]
        images = read_images(table, model.image_size, rejects, ahead)
        pairs = (
            (entry, tokens, entry["text"])
            for row, tokens in encode_images(images, model.encode_images, self.batch_size, ahead)
            for entry in texts[row]
            if is_judged(entry, self.sources)
        )
        judge(model, pairs, self.batch_size, self.max_text_length, self.threshold)
        rejects += not_finite(table["id"], unscored(texts, self.sources))
        return Out(without(with_texts(table, texts), rejects), rejects)


@dataclass(frozen=True, kw_only=True)
class ItmScore(ItmFilter):
    """Adds `column`: list<float32>, P(match) of each text of `sources`, and decides nothing; other texts get null.

    `texts` stays as it is, so scores of several heads stand side by side, and `selection.decide` decides by any of them as
    often as wanted. encoder: the name in rules. Texts that are dropped, by whichever filter, are not scored. `threshold` has
    no effect and cannot be set.
    """

    NAME: ClassVar[str] = "filter.itm:ItmScore"
    NOT_IN_KEY: ClassVar[frozenset[str]] = ItmFilter.NOT_IN_KEY | {"encoder", "threshold"}

    column: str = "itm_score"
    encoder: str = ITM

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.itm", id=pa.string(), texts=TEXTS, image=pa.binary())
        return with_score(inp, self.column, self.encoder, "filter.itm")

    def preflight(self) -> list[str]:
        unused = ["threshold has no effect on scores; set it in a rule"] if self.threshold != 0.5 else []
        return super().preflight() + unused

    def _judge(self, model: Loaded, table: pa.Table, ahead: Ahead) -> Out:
        rejects: list[Reject] = []
        flat = FlatTexts(table["texts"])
        texts = flat.field("text").to_pylist()
        of_row: dict[int, list[int]] = {}
        for at in np.flatnonzero(flat.still_in(self.sources)).tolist():
            of_row.setdefault(int(flat.row[at]), []).append(at)
        images = read_images(table, model.image_size, rejects, ahead)
        pairs = (
            (at, tokens, texts[at])
            for row, tokens in encode_images(images, model.encode_images, self.batch_size, ahead)
            for at in of_row.get(row, ())
        )
        scores = np.full(len(texts), np.nan, np.float32)
        lost = []
        for at, logits in match_logits(model, pairs, self.batch_size, self.max_text_length):
            scores[at] = logits.softmax(0)[1].item()
            if not np.isfinite(scores[at]):
                lost.append(int(flat.row[at]))
        rejects += not_finite(table["id"], lost)
        values = flat.nested(pa.array(scores, mask=np.isnan(scores)))
        return Out(without(with_columns(table, **{self.column: values}), rejects), rejects)


def is_judged(entry: Mapping[str, Any], sources: Collection[str]) -> bool:
    """Returns whether the filter scores a text: one of `sources`, not dropped by another filter."""
    return entry["source"] in sources and (entry["kept"] is not False or entry["why"] == NOT_MATCHED)


def unscored(texts: Sequence[Sequence[Mapping[str, Any]]], sources: Collection[str]) -> Iterator[int]:
    """Yields the numbers of rows with a judged text whose score is not finite. texts: of each row."""
    for row, several in enumerate(texts):
        scores = (entry["score"] for entry in several if is_judged(entry, sources))
        if any(score is not None and not math.isfinite(score) for score in scores):
            yield row


def threshold_problems(threshold: float) -> list[str]:
    """Returns error texts for `preflight`; empty if `threshold` is a probability."""
    if 0 <= threshold <= 1:
        return []
    return [f"threshold must be a probability, from 0 to 1, got {threshold}"]


def judge(
    model: Loaded,
    pairs: Iterable[tuple[dict[str, Any], torch.Tensor, str]],
    batch_size: int,
    max_text_length: int,
    threshold: float,
) -> None:
    """Sets `score`, `kept` and `why` of each text. pairs: (entry of `texts`, encoded image, text)."""
    for entry, logits in match_logits(model, pairs, batch_size, max_text_length):
        score = np.float32(logits.softmax(0)[1].item())
        kept = float(score) >= threshold  # decide by the stored float32 value
        entry.update(score=score, kept=kept, why=None if kept else NOT_MATCHED)


def match_logits(
    model: Loaded,
    pairs: Iterable[tuple[K, torch.Tensor, str]],
    batch_size: int,
    max_text_length: int,
    share_images: bool = False,
) -> Iterator[tuple[K, torch.Tensor]]:
    """Maps (key, encoded image, text) to (key, float32 logits (2,) of no match and match), in order.

    share_images: consecutive texts of one image share one copy of its tokens. This is faster if images have many
    texts, but batch shapes then vary, so the last bits of a logit may depend on which pairs share a batch.
    """
    for batch, num_real in fixed_batches(pairs, batch_size):
        ids, mask = model.tokenizer.encode([text for _, _, text in batch], max_text_length)
        images, rows = _images_and_rows([tokens for _, tokens, _ in batch], share_images)
        logits = model.match(ids, mask, images, rows)
        yield from zip([key for key, _, _ in batch[:num_real]], logits[:num_real].float().cpu(), strict=True)


def _images_and_rows(tokens: list[torch.Tensor], share: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns stacked image tokens and, with `share`, the index of each text's image among them."""
    import torch

    if not share:
        return torch.stack(tokens), None
    is_new = [i > 0 and t is not tokens[i - 1] for i, t in enumerate(tokens)]
    images = [t for t, new in zip(tokens[1:], is_new[1:], strict=True) if new]
    return torch.stack([tokens[0], *images]), torch.tensor(is_new).cumsum(0).to(tokens[0].device)
