"""Caption generation: left-to-right cross entropy of a decoder (BLIP, GPT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.capabilities import PredictsNext
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs

NEXT = "next"  # name of the chosen positions in `Stream.places`


class Lm(Objective):
    """`lm`: label-smoothed cross entropy per token, in nats.

    The prompt of the text stream is given and not learned. label_smoothing: None for the model's own (BLIP: 0.1), 0 if it
    has none. With smoothing 0.1 the lowest value is above 0 (1.358 at 30,524 tokens): it is no likelihood.
    """

    LOSSES = ("lm",)
    NEEDS = (PredictsNext,)

    def __init__(self, *, label_smoothing: float | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def bind(self, model: Any) -> None:
        if self.label_smoothing is None:
            self.label_smoothing = getattr(model.config, "label_smoothing", 0.0)

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"lm": (next_tokens(batch.stream("text")) != IGNORE).sum()}

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        targets = next_tokens(out.stream("text"))
        counted = targets != IGNORE
        places = out.stream("text").chosen(NEXT, counted)
        hidden: Tensor = out.decoder_hidden[:, :-1].flatten(0, 1)
        logits = out.model.predict(hidden[places]).float()  # (M, V): no logits where nothing is asked
        assert self.label_smoothing is not None
        total = F.cross_entropy(
            logits, targets.flatten()[places], label_smoothing=self.label_smoothing, reduction="sum"
        )
        return {"lm": Term(total, counted.sum())}


def next_tokens(text: Stream) -> Tensor:
    """Returns the target (B, L - 1) of positions 0 .. L - 2: the token after it; IGNORE for padding and the prompt.

    `text.extra["prompt"]` (B,): how many leading positions are given; the last of them predicts the first word.
    """
    assert text.mask is not None
    targets = text.data[:, 1:].masked_fill(~text.mask[:, 1:].bool(), IGNORE)
    if "prompt" in text.extra:
        at = torch.arange(targets.shape[1], device=targets.device)
        targets = targets.masked_fill(at[None] < text.extra["prompt"][:, None] - 1, IGNORE)
    return targets
