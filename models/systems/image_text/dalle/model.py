"""DALL-E: a transformer over a text and the codes of an image, one after the other. Ramesh et al. 2021,
https://arxiv.org/abs/2102.12092.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.cache import Cache
from vlpipe.models.blocks.post_norm import INIT_STD, init_bert
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.image_text.dalle.layers import DENSE, SparseLayer, pattern_of, sees


class Dalle(Model):
    """Defaults are the paper's (12 G parameters). Losses: `lm:Lm`, weight 1/8, and `images.next_codes:NextCodes`, 7/8.

    A sequence is a text of `max_text_length` positions, its start token first, then the codes of a `grid` x `grid` image. A
    position without a word has a learned token of its own (section 2.2), which the image sees and no loss predicts; the
    output of the last text position predicts the first code. A code is embedded as itself, plus its row and its column.
    attention: "sparse" patterns, or "dense". kernel: side of the window of the last layer.
    """

    STREAMS = {"text": "text:Text", "image": "code_grid:CodeGrid"}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        num_codes: int = 8192,
        grid: int = 32,
        max_text_length: int = 256,
        width: int = 3968,
        layers: int = 64,
        heads: int = 62,
        kernel: int = 11,
        attention: Literal["sparse", "dense"] = "sparse",
        norm_eps: float = 1e-5,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        if attention not in ("sparse", "dense") or kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"model: attention is sparse or dense, and kernel an odd number, got {attention!r} and {kernel}"
            )
        self.num_places, self.num_text = grid * grid, max_text_length
        self.words = TextEmbed(vocab_size, max_text_length, width, norm_eps=None)
        self.padding = nn.Embedding(max_text_length, width)  # one per position
        self.codes = nn.Embedding(num_codes, width)
        self.rows, self.columns = nn.Embedding(grid, width), nn.Embedding(grid, width)
        self.layers = nn.ModuleList(
            SparseLayer(width, heads, cross=False, norm_eps=norm_eps) for _ in range(layers)
        )
        self.patterns = [DENSE if attention == DENSE else pattern_of(i, layers) for i in range(1, layers + 1)]
        for pattern in dict.fromkeys(self.patterns):
            self.register_buffer(pattern, sees(pattern, max_text_length, grid, kernel), persistent=False)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.word_head = nn.Linear(width, vocab_size)
        self.code_head = nn.Linear(width, num_codes)
        init_bert(self, init_std)

    def streams(self) -> dict[str, dict[str, Any]]:
        found = super().streams()
        found["image"] |= {"num_codes": self.config.num_codes, "num_places": self.num_places}
        return found

    def image_codes(self, out: Outputs) -> Tensor:
        """(B, N) int64."""
        return out.stream("image").data

    def _text(self, out: Outputs) -> Tensor:
        """(B, T, width): words and, where there is none, the padding of the position."""
        text = out.stream("text")
        assert text.mask is not None
        missing = self.num_text - text.data.shape[1]
        ids, mask = F.pad(text.data, (0, missing)), F.pad(text.mask.bool(), (0, missing))
        words = torch.where(mask[:, :, None], self.words.words(ids), self.padding.weight)
        return self.words(ids, words=words)

    def _image(self, codes: Tensor, first: int = 0) -> Tensor:
        """Codes (B, n) of places `first`, ... -> (B, n, width)."""
        places = (self.rows.weight[:, None] + self.columns.weight).flatten(0, 1)
        return self.codes(codes) + places[first : first + codes.shape[1]]

    def hidden(self, out: Outputs) -> Tensor:
        """(B, T + N - 1, width); the last code predicts nothing and is left out."""
        x = torch.cat([self._text(out), self._image(out.image_codes[:, :-1])], 1)
        num = x.shape[1]
        for layer, pattern in zip(self.layers, self.patterns, strict=True):
            x = layer(x, self.get_buffer(pattern)[:num, :num])
        return self.norm(x)

    def decoder_hidden(self, out: Outputs) -> Tensor:
        """(B, L, width): of the text."""
        return out.hidden[:, : out.stream("text").data.shape[1]]

    def predict(self, hidden: Tensor) -> Tensor:
        return self.word_head(hidden)

    def next_code_hidden(self, out: Outputs) -> Tensor:
        return out.hidden[:, self.num_text - 1 :]

    def predict_codes(self, hidden: Tensor) -> Tensor:
        return self.code_head(hidden)

    def start_codes(self, out: Outputs) -> tuple[Cache, Tensor]:
        cache = Cache(self.num_text + self.num_places)
        return cache, self._step(self._text(out), cache)[:, -1]

    def step_codes(self, codes: Tensor, cache: Any) -> Tensor:
        return self._step(self._image(codes, cache.length - self.num_text), cache)

    def _step(self, x: Tensor, cache: Cache) -> Tensor:
        num = x.shape[1]
        for i, (layer, pattern) in enumerate(zip(self.layers, self.patterns, strict=True)):
            assert isinstance(layer, SparseLayer)
            x = layer.step_of(x, cache, i, cache.positions(self.get_buffer(pattern), num))
        cache.advance(num)
        return self.norm(x)
