"""VQAScore: the probability that a model answers "Yes" when asked whether an image shows what a text says.

Lin et al., 2024, https://arxiv.org/abs/2404.01291. Questions and answer are those of its code,
https://github.com/linzhiqiu/t2v_metrics. `LocalAnswers` asks a model in this process; `endpoint.reply:of_logprobs` reads a
server's log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.vision_language.batching import SEQUENCES, collated, in_groups
from vlpipe.stages.vision_language.model import Arrays, VisionLanguageModel

if TYPE_CHECKING:
    import numpy as np

K = TypeVar("K")
QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'
ANSWER = "Yes"


class Answers(Protocol):
    """What tells how probable an answer is. keyed: (key, input of an image and a question); yields (key, probability)."""

    def probabilities(self, keyed: Iterable[tuple[K, Arrays]]) -> Iterator[tuple[K, float]]: ...


@dataclass(frozen=True)
class LocalAnswers:
    """P(answer | image, question) by a model in this process, its tokens given one after the other (teacher forcing).

    The probability of an answer of several tokens is their geometric mean, as in the paper's code. against: another answer;
    the probability is then that of `answer` as a share of both.
    """

    model: VisionLanguageModel
    batch_size: int
    answer: str = ANSWER
    against: str = ""

    def probabilities(self, keyed: Iterable[tuple[K, Arrays]]) -> Iterator[tuple[K, float]]:
        """Yields (key, probability), in another order than the items."""
        for batch, num_real in in_groups(keyed, self.batch_size, self.model.side):
            arrays = [each for _, each in batch]
            logs = log_probabilities(self.model, arrays, self.answer)
            found = logs.exp()
            if self.against:
                others = log_probabilities(self.model, arrays, self.against)
                both = found + others.exp()  # 0 where both are too small for a float64
                found = (found / both).where(both > 0, (logs - others).sigmoid())
            keys = [key for key, _ in batch[:num_real]]
            yield from zip(keys, found[:num_real].tolist(), strict=True)


def answer_ids(model: VisionLanguageModel, answer: str) -> list[int]:
    """Returns the tokens of an answer. Raises VlpipeError if it has none."""
    ids: list[int] = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not ids or model.tokenizer.unk_token_id in ids:
        raise VlpipeError(f"the model's tokenizer has no tokens for the answer {answer!r}")
    return ids


def log_probabilities(model: VisionLanguageModel, batch: Sequence[Arrays], answer: str) -> torch.Tensor:
    """Returns the mean log-probability of the answer's tokens, (B,) float64, for model input of one shape."""
    ids = answer_ids(model, answer)
    is_encoder_decoder = bool(model.model.config.get_text_config().is_encoder_decoder)
    logits = (_of_decoder if is_encoder_decoder else _of_prompt)(model, batch, ids)
    logs = logits.double().log_softmax(-1)
    each = torch.stack([logs[:, at, one] for at, one in enumerate(ids)], 1)
    return each.mean(1).cpu()


def _of_prompt(model: VisionLanguageModel, batch: Sequence[Arrays], ids: Sequence[int]) -> torch.Tensor:
    """Returns the logits at the places of the answer, (B, number of its tokens, V): it follows the prompt."""
    arrays = model.moved(collated(list(batch), model.side, model.pad_id))
    if "input_ids" not in arrays:
        raise VlpipeError("the model makes no prompt of the question; take one that answers questions")
    more = torch.tensor(ids[:-1], device=arrays["input_ids"].device).expand(len(batch), -1)
    for name in SEQUENCES:
        if name in arrays and len(ids) > 1:
            fill = {"input_ids": more, "attention_mask": torch.ones_like(more)}.get(
                name, torch.zeros_like(more)
            )
            arrays[name] = torch.cat([arrays[name], fill.to(arrays[name].dtype)], 1)
    with torch.inference_mode():
        logits: torch.Tensor = model.model(**arrays).logits
    return logits[:, -len(ids) :]


def _of_decoder(model: VisionLanguageModel, batch: Sequence[Arrays], ids: Sequence[int]) -> torch.Tensor:
    """Returns the logits of the answer's tokens, (B, number of tokens, V): a decoder writes it from its start token."""
    arrays = model.moved(collated(list(batch), model.side, model.pad_id))
    config = model.model.config.get_text_config()
    begin = [config.decoder_start_token_id]
    forced = getattr(model.model.generation_config, "forced_bos_token_id", None)
    begin += [] if forced is None else [forced]
    where = arrays["pixel_values"].device
    given = torch.tensor([*begin, *ids[:-1]], device=where).expand(len(batch), -1)
    with torch.inference_mode():
        logits: torch.Tensor = model.model(**arrays, decoder_input_ids=given).logits
    return logits[:, -len(ids) :]


def as_float32(scores: Mapping[int, float], num: int) -> np.ndarray:
    """Returns the scores by the number of their text, (num,) float32; nan for others."""
    import numpy as np

    found = np.full(num, np.nan, np.float32)
    for at, score in scores.items():
        found[at] = score
    return found
