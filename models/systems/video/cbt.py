"""CBT: a transformer over features of windows, and a shallow one over it and BERT's words.

Sun et al. 2019, https://arxiv.org/abs/1906.05743. No code was published; what is ours is said below.
"""

from __future__ import annotations

import torch.nn.functional as F
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
from vlpipe.models.blocks.post_norm import init_bert
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Cbt(Model):
    """Reads token ids (B, L), or (B, N, L) of N clips per row, and features of windows (B, N, T, D).

    Trained with `frame_nce:FrameNce` in a view with masked windows, and with `cross_nce:CrossNce`. The text encoder is a
    trained BERT (`init_parts`) that stays as it is. feat_dim: S3D's 1024. The number of layers of both transformers, and
    that a pair is scored at the text's first token by a layer, a ReLU and a linear map, are from descriptions of the
    paper; the other sizes are BERT-base's, and ours, as is that a masked window is zero before the linear map.
    train_text: the text encoder is trained, too, and has dropout.
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
        video_layers: int = 2,
        cross_layers: int = 1,
        max_text_length: int = 48,
        max_frames: int = 64,
        dropout: float = 0.1,
        init_std: float = 0.02,
        train_text: bool = False,
    ) -> None:
        super().__init__()
        text_dropout = dropout if train_text else 0.0
        self.text = BertEncoder(vocab_size, max_text_length, width, text_layers, heads, dropout=text_dropout)
        self.video = WindowEncoder(feat_dim, max_frames, width, video_layers, heads, dropout)
        self.frame_head = nn.Linear(width, feat_dim)
        positions = max_text_length + max_frames
        self.cross = JoinedEncoder(positions, max_text_length, width, cross_layers, heads, dropout)
        self.pair_hidden, self.pair_head = nn.Linear(width, width), nn.Linear(width, 1)
        init_bert(self, init_std)
        self.text.requires_grad_(train_text)

    def true_frames(self, feats: Tensor) -> Tensor:
        """(M, T, D): features of windows (B, N, T, D), of M = B x N clips."""
        return feats.flatten(0, 1)

    def video_tokens(self, out: Outputs) -> Tensor:
        """(M, T, width): states of windows, each with those around it."""
        video = out.stream("video")
        return self.video(video.data.flatten(0, 1), window_mask(video))

    def text_tokens(self, out: Outputs) -> Tensor:
        text = out.stream("text")
        return self.text(text.data.flatten(0, -2), word_mask(text))

    def clip_state(self, out: Outputs) -> Tensor:
        """(M, width): the mean of a clip's states."""
        return mean_of(out.video_tokens, window_mask(out.stream("video")))

    def frame_prediction(self, out: Outputs) -> Tensor:
        """(M, T, D): what the features of each window are taken to be."""
        return self.frame_head(out.video_tokens)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        """States of words (M, L, width) and windows (M, T, width), read together."""
        return read_together(out, self.cross)

    def pair_score(self, out: Outputs) -> Tensor:
        """(M,): log MI of text and clip, up to a constant."""
        return self.pair_head(F.relu(self.pair_hidden(out.fused["text"][:, 0])))[:, 0]
