"""A table of word vectors as a model folder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlpipe.models.interface.model import Model


class WordVectors(Model):
    """A table of word vectors as a model folder, from which `init_parts` takes its part `table`."""

    def __init__(self, *, vocab_size: int, word_dim: int = 300) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, word_dim)

    def fill(self, vectors: Tensor) -> None:
        """Takes the vectors (vocab_size, word_dim)."""
        with torch.no_grad():
            self.table.weight.copy_(vectors)
