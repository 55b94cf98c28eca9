"""VideoBERT: one BERT over the words of a sentence and the tokens of the video during it.

Sun et al. 2019, https://arxiv.org/abs/1904.01766. No code was published; what the paper leaves open is said below.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.bert import BertEncoder
from vlpipe.models.blocks.post_norm import NORM_EPS, init_bert
from vlpipe.models.blocks.text import Pooler, WordHead
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class VideoBert(Model):
    """Reads `[CLS] text [>] video tokens [SEP]`; without one of the streams, `[CLS] text [SEP]` or `[CLS] [>] video [SEP]`.

    Defaults are BERT-large's, with 12^4 video tokens. One vocabulary: words, [>], video tokens; a masked video token is
    [MASK], whose id in the stream is `num_codes`. Predictions are over the whole vocabulary. Segment types are 0 for text
    and [>], 1 for video, and masked words and tokens may be predicted in pairs as well as alone: both are our reading.

    freeze_inputs: the embeddings of words and video tokens, with which the output layer is tied, are not trained.
    """

    STREAMS = {"text": "text:Text", "video": "codes:Codes"}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        start: int,
        end: int,
        mask: int,
        num_codes: int = 12**4,
        width: int = 1024,
        layers: int = 24,
        heads: int = 16,
        max_text_length: int = 64,
        max_video_length: int = 64,
        dropout: float = 0.1,
        norm_eps: float = NORM_EPS,
        init_std: float = 0.02,
        freeze_inputs: bool = False,
    ) -> None:
        super().__init__()
        num_tokens, positions = vocab_size + 1 + num_codes, max_text_length + max_video_length + 2
        self.encoder = BertEncoder(
            num_tokens, positions, width, layers, heads, norm_eps=norm_eps, dropout=dropout
        )
        self.pooler = Pooler(width)
        self.word_head = WordHead(width, num_tokens, tied=self.encoder.embed.words, norm_eps=norm_eps)
        self.match_head = nn.Linear(width, 2)
        init_bert(self, init_std)
        self.encoder.embed.words.weight.requires_grad_(not freeze_inputs)

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        sizes = {"num_codes": self.config.num_codes, "max_length": self.config.max_video_length}
        return {**specs, "video": {**specs["video"], **sizes}}

    def hidden(self, out: Outputs) -> tuple[Tensor, int, int]:
        """Hidden states (B, L + 1 + T + 1, width) of text (L), [>], video (T) and [SEP]; L and T.

        The padding of each row is moved behind its [SEP], so that positions do not depend on the other rows, and the hidden
        states are moved back.
        """
        ids, mask, segment, length, num_video = self._joined(out)
        order = (~mask).int().argsort(dim=1, stable=True)
        back = order.argsort(dim=1)
        longest = int(mask.sum(1).max())
        ids, segment, seen = (x.gather(1, order)[:, :longest] for x in (ids, segment, mask))
        x = self.encoder(ids, seen, segment)
        x = torch.cat([x, x.new_zeros(len(x), mask.shape[1] - longest, x.shape[2])], dim=1)
        return x.gather(1, back[:, :, None].expand(-1, -1, x.shape[2])), length, num_video

    def _joined(self, out: Outputs) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """Returns ids, mask and segments (B, L + 1 + T + 1) of text, [>], video and [SEP], with L and T."""
        c, given = self.config, out.batch.streams
        rows, device = len(out.batch.same), out.batch.same.device
        if "text" in given:
            text = out.stream("text")
            rows = len(text.data)  # of paired outputs
            words, seen = text.data, torch.ones_like(text.data, dtype=torch.bool)
            seen = (seen if text.mask is None else text.mask) & (words != c.end)
        else:
            rows = len(out.stream("video").data)
            words = torch.full((rows, 1), c.start, device=device)
            seen = torch.ones_like(words, dtype=torch.bool)
        if "video" in given:
            video = out.stream("video")
            codes = torch.where(video.data == c.num_codes, c.mask, video.data + c.vocab_size + 1)
            watched = torch.ones_like(codes, dtype=torch.bool) if video.mask is None else video.mask
        else:
            codes, watched = words[:, :0], seen[:, :0]
        one = torch.ones(rows, 1, dtype=torch.long, device=device)
        ids = torch.cat([words, one * c.vocab_size, codes, one * c.end], dim=1)
        mask = torch.cat([seen, one.bool() & ("video" in given), watched, one.bool()], dim=1)
        segment = torch.zeros_like(ids)
        segment[:, words.shape[1] + 1 :] = int("video" in given)
        return ids, mask, segment, words.shape[1], codes.shape[1]

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        """Hidden states of the words (B, L, width), the end token's being zero, and of the video tokens (B, T, width)."""
        x, length, num_video = out.hidden
        return {"text": x[:, :length], "video": x[:, length + 1 : length + 1 + num_video]}

    def video_tokens(self, out: Outputs) -> Tensor:
        """(B, T, width): states of the video tokens, each with those around it and the text, if there is one."""
        return out.fused["video"]

    def word_hidden(self, out: Outputs) -> Tensor:
        return out.fused["text"]

    def code_hidden(self, out: Outputs) -> Tensor:
        return out.fused["video"]

    def predict_words(self, hidden: Tensor) -> Tensor:
        """(..., vocabulary): words first, then [>] and the video tokens."""
        return self.word_head(hidden)

    def predict_codes(self, hidden: Tensor) -> Tensor:
        """(..., vocabulary): video tokens first, then words and [>]."""
        return self.word_head(hidden).roll(self.config.num_codes, dims=-1)

    def match(self, out: Outputs) -> Tensor:
        """(B, 2): whether the sentence is said during the video."""
        return self.match_head(self.pooler(out.hidden[0]))
