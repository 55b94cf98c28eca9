"""Tasks of texts alone for models that were pretrained with images, and for those that were not: classes, and generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlpipe.models.downstream.based import BasedModel
from vlpipe.models.downstream.joint import AnswerHead
from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.capabilities import FillsWords, PredictsNext, missing
from vlpipe.models.interface.outputs import Outputs


class TextClassifier(BasedModel):
    """Logits (B, num_classes) of one or two texts, of the state of their first token; with one class, a score.

    The base fills words (`FillsWords`) of a batch that has texts alone: BERT, UNIMO. Its text stream is
    `tasks.sentences:Sentences`, `[CLS] first [SEP] second [SEP]`.
    """

    def __init__(
        self, *, base: Mapping[str, Any], num_classes: int, tokens: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(base=base, tokens=tokens)
        _need(self.base, FillsWords)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.head = AnswerHead(self.base_width, 2 * self.base_width, num_classes)

    def streams(self) -> dict[str, dict[str, Any]]:
        num = self.config.num_classes
        label = {"use": "label:Label", "num_classes": num} if num > 1 else {"use": "tasks.sentences:Score"}
        return {"text": {**self.base.streams()["text"], "use": "tasks.sentences:Sentences"}, "label": label}

    def text_logits(self, out: Outputs) -> Tensor:
        found: Tensor = self.head(_alone(self.base, out).word_hidden[:, 0])
        return found


class TextWriter(BasedModel):
    """Writes the answer to a text, token by token: `asked_answer:AskedAnswer`, whose extra["prompt"] is what is given.

    The base predicts the next token (`PredictsNext`) of a batch that has texts alone: GPT, UNIMO.
    """

    def __init__(self, *, base: Mapping[str, Any], tokens: Mapping[str, int] | None = None) -> None:
        super().__init__(base=base, tokens=tokens)
        _need(self.base, PredictsNext)

    def streams(self) -> dict[str, dict[str, Any]]:
        return {"text": {**self.base.streams()["text"], "use": "asked_answer:AskedAnswer"}}

    def decoder_hidden(self, out: Outputs) -> Tensor:
        found: Tensor = _alone(self.base, out).decoder_hidden
        return found

    def predict(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.base.predict(hidden)
        return found


def _need(base: Any, capability: type) -> None:
    if missing(base, [capability]):
        raise ValueError(f"base: {type(base).__name__} lacks the capability {capability.__name__}")


def _alone(base: Any, out: Outputs) -> Outputs:
    """Returns the outputs of the base for the text of a batch."""
    return Outputs(base, Batch({"text": out.stream("text")}, out.batch.same))
