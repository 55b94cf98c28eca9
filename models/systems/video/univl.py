"""UniVL: a text and a video encoder, a cross encoder over both, and a decoder.

Luo et al. 2020, https://arxiv.org/abs/2002.06353.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.bert import BertEncoder
from vlpipe.models.blocks.clips.encoders import (
    JoinedEncoder,
    WindowEncoder,
    read_together,
    window_mask,
    word_mask,
)
from vlpipe.models.blocks.clips.windows import mean_of
from vlpipe.models.blocks.clips.writer import Writer
from vlpipe.models.blocks.post_norm import NORM_EPS, Transform, init_bert
from vlpipe.models.blocks.text import Pooler, WordHead
from vlpipe.models.interface.batch import IGNORE
from vlpipe.models.interface.capabilities import TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class UniVl(Model):
    """Reads token ids (B, L), or (B, N, L) of N clips per row, and windows (B, N, T, D).

    Stage one trains text and video encoder with `joint_mil:JointMil`; stage two all parts, with four more losses in a
    view with masked words and frames: `masked_lm`, `frame_nce`, `align` and `reconstruct`. The decoder has the text
    encoder's words and positions, and `frame_head` the matrix by which features enter the video encoder, as in the
    released code. masked_decoder_input: the decoder reads the masked text, as there, in place of the whole one. frames_at:
    the position of the first frame in the cross encoder, there the length to which all texts are padded; None: after all
    words that a text may have. captions: for finetuning to describe clips: `text` is what is said, or nothing, and the
    decoder writes the stream `caption`. start, end, pad, unk, mask: token ids; the defaults are those of BERT's lower-case
    words.
    """

    # 2: frames keep their position in the cross encoder beside texts of any length; names of blocks
    VERSION = 2

    STREAMS = {"video": "windows:S3dWindows", "text": "text:Text"}  # noqa: RUF012
    ENCODINGS = {"video": ("video_tokens",), "text": ("text_tokens",)}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        start: int = 101,
        end: int = 102,
        pad: int = 0,
        unk: int = 100,
        mask: int = 103,
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
        frames_at: int | None = None,
        masked_decoder_input: bool = False,
        captions: bool = False,
    ) -> None:
        super().__init__()
        self.text = BertEncoder(vocab_size, max_text_length, width, text_layers, heads, dropout=dropout)
        self.video_norm = nn.LayerNorm(feat_dim, eps=NORM_EPS)
        self.video = WindowEncoder(feat_dim, max_frames, width, video_layers, heads, dropout)
        at = max_text_length if frames_at is None else frames_at
        self.cross = JoinedEncoder(max_text_length + max_frames, at, width, cross_layers, heads, dropout)
        self.pooler, self.similarity = Pooler(width), nn.Linear(width, 1)
        self.word_head = WordHead(width, vocab_size, tied=self.text.embed.words)
        self.frame_head = FrameHead(self.video.proj)
        self.decoder = Writer(self.text.embed, decoder_layers, heads, dropout)
        self.decoder_head = WordHead(width, vocab_size, tied=self.text.embed.words)
        init_bert(self, init_std)

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        if self.config.captions:
            specs["caption"], specs["text"] = (
                specs["text"],
                {**specs["text"], "use": "transcript:NoTranscript"},
            )
        return specs

    def true_frames(self, feats: Tensor) -> Tensor:
        """(M, T, D): features of windows (B, N, T, D) through their layer norm, of M = B x N clips."""
        return self.video_norm(feats.flatten(0, 1))

    def video_tokens(self, out: Outputs) -> Tensor:
        """(M, T, width): states of windows, each with those around it."""
        video = out.stream("video")
        return self.video(self.true_frames(video.data), window_mask(video))

    def text_tokens(self, out: Outputs) -> Tensor:
        text = out.stream("text")
        return self.text(text.data.flatten(0, -2), word_mask(text))

    def clip_feat(self, out: Outputs) -> Tensor:
        video = out.stream("video")
        return mean_of(out.video_tokens, window_mask(video)).unflatten(0, video.data.shape[:2])

    def narration_feat(self, out: Outputs) -> Tensor:
        """The mean of the words' states, without the start token's: (B, N, 1, width)."""
        text, num = out.stream("text"), len(out.batch)
        mask = word_mask(text)
        return mean_of(out.text_tokens[:, 1:], mask[:, 1:]).unflatten(0, (num, -1, 1))

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        """States of words (M, L, width) and frames (M, T, width) after the cross encoder."""
        return read_together(out, self.cross)

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
        text = out.stream("caption" if self.config.captions else "text")
        ids = text.data.flatten(0, -2)
        if "ids" in text.target and not self.config.masked_decoder_input:
            target = text.target["ids"].flatten(0, -2)
            ids = torch.where(target == IGNORE, ids, target)
        context = out.clip_context
        return self.decoder(ids, context[..., :-1], context[..., -1] > 0)

    def predict(self, hidden: Tensor) -> Tensor:
        return self.decoder_head(hidden)

    def clip_context(self, out: Outputs) -> Tensor:
        """(M, L + T, width + 1): what the decoder reads of words and frames; the last value is 0 for padding, else 1."""
        seen = torch.cat([word_mask(out.stream("text")), window_mask(out.stream("video"))], dim=1)
        states = torch.cat([out.fused["text"], out.fused["video"]], dim=1)
        return torch.cat([states, seen[..., None].to(states.dtype)], dim=2)

    @property
    def text_rules(self) -> TextRules:
        c = self.config
        never = [i for i in (c.start, c.pad, c.unk, c.mask) if i != c.end]
        return TextRules(c.start, c.end, never, c.max_text_length)

    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> Any:
        """images: `clip_context`."""
        return self.decoder.start(images[..., :-1], images[..., -1] > 0, room, repeats)

    def step_text(self, ids: Tensor, cache: Any) -> Tensor:
        return self.decoder.step(ids, cache)


class FrameHead(nn.Module):
    """States (..., width) -> features (..., feat_dim): dense, GELU, norm, the transposed matrix of `proj`, and a bias."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.transform = Transform(proj.out_features)
        self.proj = proj
        self.bias = nn.Parameter(torch.zeros(proj.in_features))

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.transform(hidden) @ self.proj.weight + self.bias
        return out
