"""ViLT: one transformer over words and image patches, with no image encoder before it.

Kim et al. 2021, https://arxiv.org/abs/2102.03334.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.patches import PatchEmbed
from vlpipe.models.blocks.text import Pooler, TextEmbed, WordHead
from vlpipe.models.blocks.transformer import PreNormEncoder, init_vit
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Vilt(Model):
    """Defaults are those of ViLT-B/32. The patches of an image are all, or those of `extra["keep"]`."""

    STREAMS = {"image": "image:Image", "text": "text:Text"}  # noqa: RUF012
    FORMATS = ("vilt",)
    CHAIN = ("encoder.blocks",)

    def __init__(
        self,
        *,
        vocab_size: int,
        image_size: int = 384,
        patch_size: int = 32,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        max_text_length: int = 40,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        position: str = "learned",
        norm_eps: float = 1e-12,
        tie_words: bool = False,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.words = TextEmbed(
            vocab_size, max_text_length, width, num_types=2, norm_eps=norm_eps, dropout=dropout
        )
        self.patches = PatchEmbed(image_size, patch_size, width, position=position)
        self.modality = nn.Embedding(2, width)  # text, image
        self.encoder = PreNormEncoder(width, layers, heads, drop_path=drop_path, norm_eps=norm_eps)
        self.pooler = Pooler(width)
        tied = self.words.words if tie_words else None
        self.word_head = WordHead(width, vocab_size, tied=tied, norm_eps=norm_eps)
        self.match_head = nn.Linear(width, 2)
        init_vit(self, init_std)

    def hidden(self, out: Outputs) -> Tensor:
        """(B, L + 1 + N, width): words, then the image's class token and patches."""
        text, image = out.stream("text"), out.stream("image")
        words = self.words(text.data, text.extra.get("segment")) + self.modality.weight[0]
        patches = self.patches(image.data, image.extra.get("keep")) + self.modality.weight[1]
        seen = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        assert text.mask is not None
        keys = torch.cat([text.mask, seen], dim=1)[:, None, None, :]
        x: Tensor = self.encoder(torch.cat([words, patches], dim=1), keys)
        return x

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        """Hidden states of the words (B, L, width) and of class token and patches (B, 1 + N, width)."""
        length = out.stream("text").data.shape[1]
        return {"text": out.hidden[:, :length], "image": out.hidden[:, length:]}

    def word_hidden(self, out: Outputs) -> Tensor:
        return out.fused["text"]

    def predict_words(self, hidden: Tensor) -> Tensor:
        return self.word_head(hidden)

    def match(self, out: Outputs) -> Tensor:
        return self.match_head(self.pooler(out.hidden))
