"""Caption generation: left-to-right cross entropy of the image-grounded decoder (BLIP)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models import distributed
from vlpipe.models.features import Features

IGNORE = -100


class Lm(nn.Module):
    """`lm`: label-smoothed cross entropy per token, in nats; mean over the tokens of all ranks.

    With smoothing 0.1 its floor is above 0 (1.358 at 30,524 tokens): it is no likelihood. `prompt_length`:
    how many leading positions, [DEC] included, are given and not learned (BLIP's captioner: 4 for "[DEC] a
    picture of").
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("lm",)

    def __init__(self, *, prompt_length: int = 0) -> None:
        super().__init__()
        self.prompt_length = prompt_length

    def bind(self, model: Any) -> None:
        """Nothing to bind: no state."""

    def num_terms(self, batch: Mapping[str, Any]) -> int:
        """Over how many tokens of `batch` the mean runs."""
        targets = next_tokens(batch["input_ids"], batch["attention_mask"], self.prompt_length)
        return int((targets != IGNORE).sum())

    def forward(self, model: Any, batch: Mapping[str, Any], features: Features) -> dict[str, Tensor]:
        targets = next_tokens(features.input_ids, features.attention_mask, self.prompt_length)
        counted = targets != IGNORE
        hidden = model.decode_text(features.input_ids, features.image_tokens)[:, :-1]
        logits = model.predict(
            hidden[counted]
        ).float()  # (targets, V): the head is skipped where nothing is asked
        smoothing = model.config.label_smoothing
        total = F.cross_entropy(logits, targets[counted], label_smoothing=smoothing, reduction="sum")
        return {"lm": distributed.mean(total, counted.sum())}


def next_tokens(ids: Tensor, mask: Tensor, prompt_length: int) -> Tensor:
    """Targets (B, L - 1) of positions 0 .. L - 2: the token after it, IGNORE for padding and the prompt."""
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORE)
    if prompt_length > 1:
        targets[:, : prompt_length - 1] = IGNORE
    return targets
