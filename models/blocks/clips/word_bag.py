"""Texts as bags of words: HowTo100M's and MIL-NCE's text sides."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class WordBag(nn.Module):
    """Word ids (..., L) -> (..., dim): each word's vector through a layer and a ReLU, then the greatest of each channel.

    dim: None for no second layer, the result then has `width`. pad_counts: padding takes part in the maximum, as in the
    released code of HowTo100M and of MIL-NCE, where a text's vector depends on L while it is short; otherwise a text without
    words is 0 before the second layer. frozen: word vectors are not trained.
    """

    def __init__(
        self,
        vocab_size: int,
        word_dim: int,
        width: int,
        dim: int | None = None,
        *,
        pad_counts: bool = False,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.pad_counts = pad_counts
        self.words = nn.Embedding(vocab_size, word_dim)
        self.fc1 = nn.Linear(word_dim, width)
        self.fc2 = nn.Linear(width, dim) if dim is not None else None
        self.words.weight.requires_grad_(not frozen)

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """mask: (..., L) bool, False for padding; None if there is none."""
        x = F.relu(self.fc1(self.words(ids)))
        if mask is not None and not self.pad_counts:
            x = (
                x * mask[..., None]
            )  # a ReLU is 0 at least, so 0 is never the greatest of a text with a greater one
        x = x.amax(dim=-2)
        return x if self.fc2 is None else self.fc2(x)
