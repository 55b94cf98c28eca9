"""UniVL: a text and a video encoder, a cross encoder over both, and a decoder.

Luo et al. 2020, https://arxiv.org/abs/2002.06353.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.bert import BertEncoder
from vlpipe.models.blocks.clips.windows import mean_of
from vlpipe.models.blocks.post_norm import (
    CrossAttention,
    FeedForward,
    PostNormLayer,
    SelfAttention,
    Transform,
    init_bert,
)
from vlpipe.models.blocks.text import Pooler, TextEmbed, WordHead
from vlpipe.models.interface.batch import IGNORE, Stream
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class UniVl(Model):
    """Reads token ids (B, L), or (B, N, L) of N clips per row, and windows (B, N, T, D).

    Stage one trains text and video encoder with `joint_mil:JointMil`; stage two all parts, with four more losses in a
    view with masked words and frames: `masked_lm`, `frame_nce`, `align` and `reconstruct`. masked_decoder_input: the
    decoder reads the masked text, as in the released code, in place of the whole one.
    """

    STREAMS = {"video": "windows:S3dWindows", "text": "text:Text"}  # noqa: RUF012
    ENCODINGS = {"video": ("video_tokens",), "text": ("text_tokens",)}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int = 1024,
        width: int = 768,
        heads: int = 12,
        text_layers: int = 12,
        video_layers: int = 6,
        cross_layers: int = 2,
        decoder_layers: int = 3,
        max_text_length: int = 48,
        max_frames: int = 64,
        dropout: float = 0.1,
        init_std: float = 0.02,
        masked_decoder_input: bool = False,
    ) -> None:
        super().__init__()
        self.text = BertEncoder(vocab_size, max_text_length, width, text_layers, heads, dropout=dropout)
        self.video_norm = nn.LayerNorm(feat_dim)
        self.video_in, self.video_out = nn.Linear(feat_dim, width), nn.LayerNorm(width, eps=1e-12)
        self.video_positions = nn.Embedding(max_frames, width)
        self.video = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(video_layers))
        self.cross_types = nn.Embedding(2, width)
        self.cross_positions = nn.Embedding(max_text_length + max_frames, width)
        self.cross_norm = nn.LayerNorm(width, eps=1e-12)
        self.cross = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(cross_layers))
        self.pooler, self.similarity = Pooler(width), nn.Linear(width, 1)
        words = self.text.embed.words
        self.word_head = WordHead(width, vocab_size, tied=words)
        self.frame_head = nn.Sequential(Transform(width), nn.Linear(width, feat_dim))
        self.decoder_embed = TextEmbed(vocab_size, max_text_length, width, dropout=dropout)
        self.decoder_embed.words = words
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, dropout) for _ in range(decoder_layers))
        self.decoder_head = WordHead(width, vocab_size, tied=words)
        init_bert(self, init_std)

    def true_frames(self, feats: Tensor) -> Tensor:
        """(M, T, D): features of windows (B, N, T, D) through their layer norm, of M = B x N clips."""
        return self.video_norm(feats.flatten(0, 1))

    def video_tokens(self, out: Outputs) -> Tensor:
        feats = self.true_frames(out.stream("video").data)
        x = self.video_in(feats) + self.video_positions.weight[: feats.shape[1]]
        x = F.dropout(self.video_out(x), self.config.dropout, self.training)
        keys = frame_mask(out.stream("video"))[:, None, None]
        for layer in self.video:
            x = layer(x, keys)
        return x

    def text_tokens(self, out: Outputs) -> Tensor:
        text = out.stream("text")
        return self.text(text.data.flatten(0, -2), text_mask(text))

    def clip_feat(self, out: Outputs) -> Tensor:
        video = out.stream("video")
        return mean_of(out.video_tokens, frame_mask(video)).unflatten(0, video.data.shape[:2])

    def narration_feat(self, out: Outputs) -> Tensor:
        """The mean of the words' states, without the start token's: (B, N, 1, width)."""
        text, num = out.stream("text"), len(out.batch)
        mask = text_mask(text)
        return mean_of(out.text_tokens[:, 1:], mask[:, 1:]).unflatten(0, (num, -1, 1))

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        """States of words (M, L, width) and frames (M, T, width) after the cross encoder."""
        tokens, masks = [], []
        for name, mask_of in (("text", text_mask), ("video", frame_mask)):
            value, rows = out.unpaired(f"{name}_tokens", name)
            tokens.append(value if rows is None else value[rows])
            masks.append(mask_of(out.stream(name)))
        length = tokens[0].shape[1]
        types = [self.cross_types.weight[k] + x for k, x in enumerate(tokens)]
        x = torch.cat(types, dim=1)
        x = self.cross_norm(x + self.cross_positions.weight[: x.shape[1]])
        x = F.dropout(x, self.config.dropout, self.training)
        keys = torch.cat(masks, dim=1)[:, None, None]
        for layer in self.cross:
            x = layer(x, keys)
        return {"text": x[:, :length], "video": x[:, length:]}

    def word_hidden(self, out: Outputs) -> Tensor:
        return out.fused["text"]

    def predict_words(self, hidden: Tensor) -> Tensor:
        return self.word_head(hidden)

    def frame_prediction(self, out: Outputs) -> Tensor:
        """(M, T, D): what the features `frames` of each window, see `true_frames`, are taken to be."""
        return self.frame_head(out.fused["video"])

    def pair_score(self, out: Outputs) -> Tensor:
        """(M,): how well text and clip fit, from the cross encoder."""
        return self.similarity(self.pooler(out.fused["text"]))[:, 0]

    def decoder_hidden(self, out: Outputs) -> Tensor:
        """(M, L, width): of the text before it was masked, or of a stream `written` (B, L) beside it, such as a caption."""
        text = out.stream("text")
        ids = text.data.flatten(0, -2)
        if "written" in out.batch.streams:
            ids = out.stream("written").data
        elif "ids" in text.target and not self.config.masked_decoder_input:
            target = text.target["ids"].flatten(0, -2)
            ids = torch.where(target == IGNORE, ids, target)
        x = self.decoder_embed(ids)
        context = torch.cat([out.fused["text"], out.fused["video"]], dim=1)
        seen = torch.cat([text_mask(text), frame_mask(out.stream("video"))], dim=1)[:, None, None]
        for layer in self.decoder:
            x = layer(x, context, seen)
        return x

    def predict(self, hidden: Tensor) -> Tensor:
        return self.decoder_head(hidden)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to a context, feed-forward, each with a norm behind it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.cross = CrossAttention(width, width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)

    def forward(self, x: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """seen: (B, 1, 1, N) bool, False for padding of the context (B, N, width)."""
        x = self.attention(x, causal=True)
        x = self.cross(x, self.cross.keys_values(context), seen)
        out: Tensor = self.feed_forward(x)
        return out


def text_mask(text: Stream) -> Tensor:
    """(M, L) bool."""
    return (torch.ones_like(text.data, dtype=torch.bool) if text.mask is None else text.mask).flatten(0, -2)


def frame_mask(video: Stream) -> Tensor:
    """(M, T) bool."""
    data = video.data
    return (data.new_ones(data.shape[:-1], dtype=torch.bool) if video.mask is None else video.mask).flatten(
        0, 1
    )
