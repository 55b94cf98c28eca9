"""MIL-NCE: S3D-G and a bag of words in one space, from raw clips or from features of their windows.

Miech et al. 2020, https://arxiv.org/abs/1912.06430.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlpipe.models.blocks.clips.windows import mean_of
from vlpipe.models.blocks.clips.word_bag import WordBag
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.video.s3dg import S3dG


class MilNceModel(Model):
    """Dot products of clips and texts, without norm. Trained with `mil_nce:MilNce`.

    feat_dim: width of the features of windows that it reads; a clip's is their mean, and one linear map follows, as the last
    of S3D-G. None: it reads raw clips (B, N, 3, T, H, W) from 0 to 1 and trains S3D-G. space_to_depth: the published
    network; False, as in training from scratch. pad_counts: see `WordBag`. Each word has 300 values, 2,048 after a layer.
    """

    STREAMS = {"video": "windows:S3dWindows", "text": "narration:Narration"}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        feat_dim: int | None = 1024,
        embed_dim: int = 512,
        word_dim: int = 300,
        text_width: int = 2048,
        space_to_depth: bool = False,
        pad_counts: bool = False,
        freeze_words: bool = False,
    ) -> None:
        super().__init__()
        self.video: nn.Module = (
            S3dG(dim=embed_dim, space_to_depth=space_to_depth, num_words=0)
            if feat_dim is None
            else nn.Linear(feat_dim, embed_dim)
        )
        self.text = WordBag(
            vocab_size, word_dim, text_width, embed_dim, pad_counts=pad_counts, frozen=freeze_words
        )

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        return specs if self.config.feat_dim else {**specs, "video": {"use": "raw_clips:RawClips"}}

    def clip_feat(self, out: Outputs) -> Tensor:
        video = out.stream("video")
        if self.config.feat_dim is None:
            return self.video(video.data.flatten(0, 1)).unflatten(0, video.data.shape[:2])
        if video.data.shape[-1] != self.config.feat_dim:
            raise ValueError(
                f"video: features have {video.data.shape[-1]} values, feat_dim is {self.config.feat_dim}"
            )
        return self.video(mean_of(video.data, video.mask))

    def narration_feat(self, out: Outputs) -> Tensor:
        text = out.stream("text")
        return self.text(text.data, text.mask)
