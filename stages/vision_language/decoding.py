"""Decoding by transformers' own loop, `generate`: greedy, beam search, or sampling with draws that belong to each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlpipe.stages.vision_language.model import VisionLanguageModel

if TYPE_CHECKING:
    from transformers import LogitsProcessorList


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a text is decoded. temperature 0: greedy, or a search with `num_beams`; above 0: sampling from likely tokens.

    top_p, top_k: of which tokens is sampled (1 and 0: all). min_tokens, max_tokens: of the text, its end included.
    repetition_penalty: 1 for none.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    min_tokens: int = 0
    max_tokens: int = 64
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Written:
    """A text that a model wrote, with the number of its tokens. is_cut: it reached the limit before its end."""

    text: str
    num_tokens: int
    is_cut: bool


class Started:
    """A logits processor that changes nothing: it notes how long the sequences are before the first token is written."""

    def __init__(self) -> None:
        self.length = -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.length < 0:
            self.length = input_ids.shape[1]
        return scores


class RowDraws:
    """A logits processor that draws a token for each row, and leaves it the only possible one.

    One uniform number per row and step, from the row's own generator, is looked up among the cumulated probabilities. So the
    draws of a row do not depend on the others, and `generate` can stay greedy.
    """

    def __init__(self, seeds: Sequence[int], decoding: Decoding) -> None:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._warpers: list[Any] = [TemperatureLogitsWarper(decoding.temperature)]
        self._warpers += [TopKLogitsWarper(decoding.top_k)] if decoding.top_k else []
        self._warpers += [TopPLogitsWarper(decoding.top_p)] if decoding.top_p < 1 else []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        uniform = torch.stack(
            [torch.rand((), generator=one, dtype=torch.float64) for one in self._generators]
        )
        ends = scores.softmax(-1).double().cumsum(-1)
        drawn = torch.searchsorted(ends, (uniform.to(ends.device) * ends[:, -1])[:, None], right=True)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, drawn.clamp(max=scores.shape[1] - 1), 0.0)


def write(
    model: VisionLanguageModel, batch: dict[str, Tensor], decoding: Decoding, seeds: Sequence[int] = ()
) -> list[Written]:
    """Returns a text for each row of a collated batch. seeds: of each row, for sampling."""
    ids = generated(model, batch, decoding, seeds)
    ends = set(model.ends)
    return [_written(model, row, ends, decoding) for row in ids.tolist()]


def generated(
    model: VisionLanguageModel, batch: dict[str, Tensor], decoding: Decoding, seeds: Sequence[int] = ()
) -> Tensor:
    """Returns the ids of the new tokens, (B, at most max_tokens), padded behind each text's end."""
    started = Started()
    with torch.inference_mode():
        found = model.model.generate(
            **model.moved(batch),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            num_beams=decoding.num_beams,
            max_new_tokens=decoding.max_tokens,
            min_new_tokens=decoding.min_tokens or None,
            repetition_penalty=decoding.repetition_penalty,
            use_cache=True,
            logits_processor=_processors(started, decoding, seeds),
        )
    new: Tensor = found[:, started.length :].cpu()
    return new


def _processors(started: Started, decoding: Decoding, seeds: Sequence[int]) -> LogitsProcessorList:
    from transformers import LogitsProcessorList

    found = LogitsProcessorList([started])
    if decoding.temperature > 0:
        found.append(RowDraws(seeds, decoding))
    return found


def _written(model: VisionLanguageModel, ids: list[int], ends: set[int], decoding: Decoding) -> Written:
    stop = next((at for at, one in enumerate(ids) if one in ends), None)
    own = ids if stop is None else ids[:stop]
    text = model.tokenizer.decode(own, skip_special_tokens=True).strip()
    num = len(ids) if stop is None else stop + 1
    return Written(text, num, num >= decoding.max_tokens and (stop is None or _forces_end(model)))


def _forces_end(model: VisionLanguageModel) -> bool:
    """Returns whether the model writes the end token at the limit, whatever it would have said."""
    return model.model.generation_config.forced_eos_token_id is not None
