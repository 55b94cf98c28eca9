"""VLP: one transformer that reads regions and words, and writes captions of regions.

Zhou et al. 2019, https://arxiv.org/abs/1909.11059.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.cache import SourceCache
from vlpipe.models.blocks.post_norm import INIT_STD, JoiningLayer, Transform, init_bert
from vlpipe.models.blocks.regions import seen_regions
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.interface.batch import Stream
from vlpipe.models.interface.capabilities import TextRules
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.regions.base import RegionModel

BOTH_WAYS, LEFT = (0, 1), (4, 5)  # segments of source and caption under each attention mask; UniLM's


class Vlp(RegionModel):
    """Defaults are those of UniLM-base, from which VLP starts. Reads `[CLS] regions [SEP]`, the source, then `words [SEP]`.

    The stream `text` is `[CLS] words [SEP]`; its extra["left_to_right"] (B,) bool (`image_text.left_to_right:LeftToRight`)
    says which rows have the sequence-to-sequence mask: the source sees itself, a word the source and the words up to itself.
    The others, and all without it, have the bidirectional mask. `sep` is the tokenizer's [SEP]; `mask`, its mask token.

    A region's feature goes through two layers; in place of a position it has a layer of the normed x1, y1, x2, y2, area and
    confidence beside the normed `num_objects` + 1 probabilities of its class. Words count their positions without regions.
    A caption is written as in the paper: [MASK] after the words so far, which are never recomputed, predicts the next.
    `image_tokens` (B, R, width + 1): the embedded regions, and 1 for those that are not padding.
    """

    ENCODINGS = {"regions": ("image_tokens",)}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        sep: int,
        mask: int,
        start: int,
        pad: int,
        unk: int | None = None,
        feat_dim: int = 2048,
        num_objects: int = 1600,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        max_text_length: int = 512,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.words = TextEmbed(vocab_size, max_text_length + 2, width, num_types=6, dropout=dropout)
        first, second = nn.Linear(feat_dim, feat_dim), nn.Linear(feat_dim, width)
        self.feat = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.place = nn.Sequential(nn.Linear(6 + num_objects + 1, width), nn.ReLU())
        self.blocks = nn.ModuleList(JoiningLayer(width, heads, dropout) for _ in range(layers))
        self.word_transform, self.word_bias = Transform(width), nn.Parameter(torch.zeros(vocab_size))
        init_bert(self, init_std)

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        specs["regions"]["probs"] = True
        return specs

    def image_tokens(self, out: Outputs) -> Tensor:
        tokens, seen = self._regions(out.stream("regions")), seen_regions(out.stream("regions"))
        return torch.cat([tokens, seen[..., None].to(tokens)], dim=-1)

    def _regions(self, image: Stream) -> Tensor:
        if "prob" not in image.extra:
            raise ValueError("Vlp: 'regions' has no probabilities; set streams.regions.probs: true")
        box, prob = image.extra["box"].to(image.data), image.extra["prob"].to(image.data)
        area = (box[..., 2:] - box[..., :2]).prod(-1, keepdim=True)
        place = torch.cat([box, area, image.extra["obj_conf"][..., None].to(box)], dim=-1)
        normed = [F.layer_norm(x, x.shape[-1:], eps=1e-5) for x in (place, prob)]
        return self.feat(image.data) + self.place(torch.cat(normed, dim=-1))

    def _embedded(self, words: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """Words (B, L, width), positions (L, width), segments (L, width) or (B, L, width) -> (B, L, width)."""
        assert self.words.norm is not None
        return F.dropout(self.words.norm(words + positions + segments), self.dropout, self.training)

    def _source(self, images: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `[CLS] regions [SEP]` (B, R + 2, width), and which of it is real. types: (B or 1, 1, width)."""
        tokens, seen = images[..., :-1], images[..., -1] > 0
        table, c = self.words, self.config
        cls, sep = (table.words.weight[k].expand(len(tokens), 1, -1) for k in (c.start, c.sep))
        at = table.positions.weight[:2]
        places = torch.cat([at[:1], at.new_zeros(tokens.shape[1:]), at[1:]])
        x = self._embedded(torch.cat([cls, tokens, sep], dim=1), places, types)
        real = seen.new_ones(len(seen), 1)
        return x, torch.cat([real, seen, real], dim=1)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        text, image = out.stream("text"), out.image_tokens
        assert text.mask is not None
        assert self.words.types is not None
        left = text.extra.get("left_to_right", torch.zeros(len(image), device=image.device)).bool()
        both_ways, to_left = (self.words.types.weight[list(pair)] for pair in (BOTH_WAYS, LEFT))
        types = torch.where(left[:, None, None], to_left, both_ways)  # (B, 2, width)
        source, seen = self._source(image, types[:, :1])
        ids, num = text.data[:, 1:], text.data.shape[1] - 1
        words = self._embedded(self.words.words(ids), self._positions(2, num), types[:, 1:])
        allowed = self.allowed(seen, text.mask[:, 1:], left)
        x = torch.cat([source, words], dim=1)
        for block in self.blocks:
            x = block(x, allowed)
        end = source.shape[1]
        return {"text": torch.cat([x[:, :1], x[:, end:]], dim=1), "regions": x[:, 1 : end - 1]}

    @staticmethod
    def allowed(source: Tensor, words: Tensor, left: Tensor) -> Tensor:
        """Returns (B, 1, L, L) bool, who sees whom, of real positions source (B, S), words (B, T); left (B,): which rows."""
        num, length = source.shape[1], source.shape[1] + words.shape[1]
        at = torch.arange(length, device=source.device)
        to_left = (at[None, :] <= at[:, None]) | (at[None, :] < num)
        both = torch.cat([source, words], dim=1)[:, None, None, :]
        return both & (to_left[None, None] | ~left[:, None, None, None])

    def _positions(self, first: int, num: int) -> Tensor:
        most = self.config.max_text_length
        if first + num > most + 1:
            raise ValueError(f"text: {first + num - 1} tokens, but the model has {most} positions")
        return self.words.positions.weight[first : first + num]

    predict = RegionModel.predict_words

    def decoder_hidden(self, out: Outputs) -> Tensor:
        """As `step_text` of all words, in one pass of each layer: nothing else leaves a layer, which FSDP would not see."""
        assert self.words.types is not None
        ids, of_source, of_words = out.stream("text").data[:, 1:], *self.words.types.weight[list(LEFT)]
        (x, seen), asked = self._source(out.image_tokens, of_source), ids.shape[1] + 1
        masks = self.words.words.weight[self.config.mask].expand(len(ids), asked, -1)
        places = torch.cat([self._positions(2, asked - 1), self.words.positions.weight[2 : 2 + asked]])
        x = torch.cat([x, self._embedded(torch.cat([self.words.words(ids), masks], 1), places, of_words)], 1)
        # up to 0 the source, from 1 on the words, from `asked` on a mask after 0, 1, ... of them
        at = torch.arange(1 - seen.shape[1], 2 * asked, device=ids.device)
        last = torch.where(at < asked, at.clamp(min=0), at - asked)[:, None]
        rows = (at < asked) & (at <= last) | (at == at[:, None])
        allowed = rows & F.pad(seen, (0, 2 * asked - 1), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, allowed)
        return x[:, -asked:]

    @property
    def text_rules(self) -> TextRules:
        c = self.config
        never = sorted({c.start, c.pad, c.unk, c.mask} - {c.sep, None})
        return TextRules(c.sep, c.sep, never, c.max_text_length)

    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> SourceCache:
        """Reads `[CLS] regions [SEP]`. The first id of `step_text` is this [SEP]."""
        assert self.words.types is not None
        (x, seen), cache = self._source(images, self.words.types.weight[LEFT[0]]), SourceCache(room)

        def keep(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            cache.image.append((k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)))
            return k, v, seen[:, None, None, :]

        for block in self.blocks:
            x = block(x, join=keep)
        cache.seen = seen.repeat_interleave(repeats, 0)
        return cache

    def step_text(self, ids: Tensor, cache: Any) -> Tensor:
        """Adds words, and returns the states of a [MASK] after each; the words see the source and the words before them."""
        assert self.words.types is not None
        is_first = not cache.own
        asked, ids = ids.shape[1], ids[:, 1:] if is_first else ids
        num, table = ids.shape[1], self.words.positions.weight
        places = [cache.positions(table[2:], num), cache.positions(table[2 if is_first else 3 :], asked)]
        masks = self.words.words.weight[self.config.mask].expand(len(ids), asked, -1)
        words = torch.cat([self.words.words(ids), masks], dim=1)
        x = self._embedded(words, torch.cat(places), self.words.types.weight[LEFT[1]])
        own = torch.eye(asked, dtype=torch.bool, device=x.device)

        def join(i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            keys, values, before = cache.put(i, k[:, :, :num], v[:, :, :num])
            of_masks = F.pad(before, (0, 0, asked - num, 0))  # the first of all follows the source alone
            rows = torch.cat([F.pad(before, (0, asked)), torch.cat([of_masks, own], dim=1)])
            seen = cache.seen[:, None, None, :].expand(-1, 1, len(rows), -1)
            allowed = torch.cat([seen, rows.expand(len(seen), 1, -1, -1)], dim=-1)
            source_k, source_v = cache.image[i]
            all_v = torch.cat([source_v, values, v[:, :, num:]], dim=2)
            return torch.cat([source_k, keys, k[:, :, num:]], dim=2), all_v, allowed

        for i, block in enumerate(self.blocks):
            x = block(x, join=partial(join, i))
        cache.advance(num)
        return x[:, num:]
