"""UniVL's reconstruction: the decoder writes the whole text from masked words and frames.

Luo et al. 2020, https://arxiv.org/abs/2002.06353, equation 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.capabilities import PredictsNext
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.lm import NEXT, next_tokens


class Reconstruct(Objective):
    """`reconstruct`: cross entropy of the next token of the text before it was masked, in nats; see `mask_text`.

    stream: the text that is written; `caption` in finetuning for captions. UniVL's code also counts padding, as the word of
    id 0.
    """

    LOSSES = ("reconstruct",)
    NEEDS = (PredictsNext,)

    def __init__(self, *, stream: str = "text") -> None:
        super().__init__()
        self.stream = stream

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"reconstruct": (next_tokens(whole(batch.stream(self.stream))) != IGNORE).sum()}

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        text = out.stream(self.stream)
        targets = next_tokens(whole(text))
        counted = targets != IGNORE
        places = text.chosen(NEXT, counted)
        logits = out.model.predict(out.decoder_hidden[:, :-1].flatten(0, 1)[places]).float()
        total = F.cross_entropy(logits, targets.flatten()[places], reduction="sum")
        return {"reconstruct": Term(total, counted.sum())}


def whole(text: Stream) -> Stream:
    """Returns the text stream before `mask_text`."""
    if "ids" not in text.target:
        return text
    return replace(text, data=torch.where(text.target["ids"] == IGNORE, text.data, text.target["ids"]))
