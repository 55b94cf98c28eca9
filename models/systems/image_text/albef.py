"""ALBEF: an image and a text encoder that are aligned before a third one fuses them, taught by a momentum copy of the model.

Li et al. 2021, https://arxiv.org/abs/2107.07651.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.bert import BertEncoder
from vlpipe.models.blocks.patches import PatchEmbed, resize_positions
from vlpipe.models.blocks.post_norm import INIT_STD, CrossAttention, FeedForward, SelfAttention, init_bert
from vlpipe.models.blocks.text import WordHead
from vlpipe.models.blocks.transformer import PreNormEncoder, init_vit
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class FusionLayer(nn.Module):
    """Self-attention of the words, cross-attention to the image, feed-forward; post-norm as in BERT."""

    def __init__(self, width: int, image_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.cross = CrossAttention(width, image_width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)

    def forward(
        self, words: Tensor, keys: Tensor, image: Tensor, rows: Tensor | None = None, first: bool = False
    ) -> Tensor:
        """words (B, L, width), keys (B, 1, 1, L) bool, image (B', N, image_width) -> (B, L, width).

        rows: (B,), which image each text looks at; None: its own. first: position 0 alone, (B, 1, width).
        """
        x = self.attention.first(words, keys) if first else self.attention(words, keys)
        out: Tensor = self.feed_forward(self.cross(x, self.cross.keys_values(image, rows)))
        return out


class Albef(Model):
    """Defaults are the paper's: ViT-B/16 at 256 pixels, the lower half of BERT-base as text encoder, the upper half, with
    cross-attention, as multimodal encoder.

    A text is encoded once, however many images it is paired with. The temperature stays within the bounds of the released
    code. position: of patches, "learned" or "sincos". init_std: of weight matrices; 0.02 is too small for a narrow model.
    """

    STREAMS = {"image": "image:Image", "text": "text:Text"}  # noqa: RUF012
    ENCODINGS = {"image": ("image_tokens",), "text": ("text_tokens",)}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        image_size: int = 256,
        patch_size: int = 16,
        vision_width: int = 768,
        vision_layers: int = 12,
        vision_heads: int = 12,
        text_width: int = 768,
        text_layers: int = 6,
        fusion_layers: int = 6,
        text_heads: int = 12,
        max_text_length: int = 512,
        embed_dim: int = 256,
        dropout: float = 0.1,
        position: str = "learned",
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.patches = PatchEmbed(image_size, patch_size, vision_width, position=position)
        self.vision = PreNormEncoder(vision_width, vision_layers, vision_heads)
        self.text = BertEncoder(
            vocab_size, max_text_length, text_width, text_layers, text_heads, dropout=dropout
        )
        self.fusion = nn.ModuleList(
            FusionLayer(text_width, vision_width, text_heads, dropout) for _ in range(fusion_layers)
        )
        self.image_proj = nn.Linear(vision_width, embed_dim)
        self.text_proj = nn.Linear(text_width, embed_dim)
        self.match_head = nn.Linear(text_width, 2)
        self.word_head = WordHead(text_width, vocab_size, tied=self.text.embed.words)
        init_bert(self, init_std)
        init_vit(self.patches, init_std)
        init_vit(self.vision, init_std)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.embed_dim = embed_dim

    def image_tokens(self, out: Outputs) -> Tensor:
        """(B, 1 + N, vision_width): class token and patches."""
        tokens: Tensor = self.vision(self.patches(out.stream("image").data))
        return tokens

    def text_tokens(self, out: Outputs) -> Tensor:
        """(B, L, text_width), without image."""
        text = out.stream("text")
        tokens: Tensor = self.text(text.data, text.mask)
        return tokens

    def image_feat(self, out: Outputs) -> Tensor:
        return F.normalize(self.image_proj(out.image_tokens[:, 0]).float(), dim=-1)

    def text_feat(self, out: Outputs) -> Tensor:
        return F.normalize(self.text_proj(out.text_tokens[:, 0]).float(), dim=-1)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        return {"text": self._fuse(out)}

    def _fuse(self, out: Outputs, first: bool = False) -> Tensor:
        """Words that have seen the image, (B, L, text_width); first: position 0 alone, (B, 1, text_width)."""
        image, image_rows = out.unpaired("image_tokens", "image")
        x, text_rows = out.unpaired("text_tokens", "text")
        x = x if text_rows is None else x[text_rows]
        mask = out.stream("text").mask
        assert mask is not None
        for i, layer in enumerate(self.fusion):
            x = layer(x, mask[:, None, None, :], image, image_rows, first and i == len(self.fusion) - 1)
        return x

    def match(self, out: Outputs) -> Tensor:
        """(B, 2) logits of [no match, match], of the multimodal [CLS]."""
        return self.match_head(self._fuse(out, first=True)[:, 0])

    def word_hidden(self, out: Outputs) -> Tensor:
        return out.fused["text"]

    def predict_words(self, hidden: Tensor) -> Tensor:
        return self.word_head(hidden)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "patches.positions"
        if name not in state:
            return state
        return {**state, name: resize_positions(state[name], self.patches.positions.shape[1])}

    @torch.no_grad()
    def constrain(self) -> None:
        self.temp.clamp_(0.001, 0.5)
