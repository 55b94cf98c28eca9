"""HowTo100M's text-video model: gated embeddings of pooled clip features and of bags of words.

Miech et al. 2019, https://arxiv.org/abs/1906.03327, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.clips.windows import greatest_of
from vlpipe.models.blocks.clips.word_bag import WordBag
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class GatedEmbeddings(Model):
    """Cosines of clips and texts. Trained with `max_margin:MaxMargin`.

    A clip's features are the greatest of its windows in each channel, each of `feat_dims` divided by its norm: 2D and 3D
    features of 2048 values in the paper. embed_dim: 4096 in the paper, 6144 in the released weights. batch_norm: in the
    gates, as in the released code; the paper has none. pad_counts, freeze_words: see `WordBag`; the paper's word vectors are
    word2vec's of Google News.
    """

    # 2: cosines in float32, also under autocast
    VERSION = 2

    STREAMS = {"video": "windows:S3dWindows", "text": "narration:Narration"}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dims: Sequence[int] = (2048, 2048),
        word_dim: int = 300,
        embed_dim: int = 4096,
        batch_norm: bool = False,
        pad_counts: bool = False,
        freeze_words: bool = True,
    ) -> None:
        super().__init__()
        self.text = WordBag(vocab_size, word_dim, embed_dim, pad_counts=pad_counts, frozen=freeze_words)
        self.text_gate = GatedUnit(embed_dim, embed_dim, batch_norm)
        self.video_gate = GatedUnit(sum(feat_dims), embed_dim, batch_norm)

    def greatest(self, out: Outputs) -> Tensor:
        """(B, N, D): the features of clips."""
        video = out.stream("video")
        windows, dims = video.data, list(self.config.feat_dims)
        if windows.shape[-1] != sum(dims):
            raise ValueError(f"video: features have {windows.shape[-1]} values, feat_dims are {dims}")
        parts = greatest_of(windows, video.mask).split(dims, dim=-1)
        return torch.cat([F.normalize(part, dim=-1) for part in parts], dim=-1)

    def clip_feat(self, out: Outputs) -> Tensor:
        return self.video_gate(out.greatest)

    def narration_feat(self, out: Outputs) -> Tensor:
        text = out.stream("text")
        return self.text_gate(self.text(text.data, text.mask))


class GatedUnit(nn.Module):
    """x (..., D) -> (..., E), unit norm: y = W1 x + b1, y * sigmoid(W2 y + b2), divided by its norm."""

    def __init__(self, width_in: int, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.fc, self.gate = nn.Linear(width_in, width), nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width) if batch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        gate = self.gate(y)
        if self.norm is not None:
            gate = self.norm(gate.flatten(0, -2)).view_as(gate)
        return F.normalize((y * torch.sigmoid(gate)).float(), dim=-1)
