"""VLMo's transformer: self-attention that images and texts share, and feed-forward experts of each.

Bao et al. 2021, https://arxiv.org/abs/2111.02358; the released code, https://github.com/microsoft/unilm, folder `vlmo`, for
biases of relative positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend
from vlpipe.models.systems.images.beit.encoder import relative_index

TEXT, IMAGE, BOTH = "text", "image", "both"  # the experts of language, vision, and vision-language
SHARED = "shared"
Parts = Sequence[tuple[str, int]]  # expert and number of tokens of each part of a sequence, in order


class Words(nn.Module):
    """Token ids (B, L) -> (B, L, width): BERT's embedding; without positions if `has_positions` is False."""

    def __init__(
        self, vocab_size: int, max_length: int, width: int, *, has_positions: bool, dropout: float
    ) -> None:
        super().__init__()
        self.words, self.dropout = nn.Embedding(vocab_size, width), dropout
        self.positions = nn.Embedding(max_length, width) if has_positions else None
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        x = x if self.positions is None else x + self.positions.weight[: ids.shape[1]]
        return F.dropout(self.norm(x), self.dropout, self.training)


class Attention(nn.Module):
    """Norm, projections and output matrix of one self-attention; keys have no bias, which would change nothing."""

    def __init__(self, width: int, num_heads: int, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> queries, keys and values (3, B, heads, L, width / heads)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(self.norm(x), self.qkv.weight, bias).unflatten(2, (3, self.num_heads, -1))
        return qkv.permute(2, 0, 3, 1, 4)


class Expert(nn.Module):
    """norm, then the feed-forward network of one modality: (B, L, width) -> (B, L, width)."""

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return out


class MomeLayer(nn.Module):
    """x + attention(x), then x + expert(x), where each part of the sequence has its expert; both branches pre-norm.

    has_both: whether there is an expert of both modalities. shares: one self-attention for all experts; else each has
    norm, projections and output matrix of its own, and tokens of all parts still attend to each other.
    layer_scale: of both branches at the start, which all experts share; None: none.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        has_both: bool,
        shares: bool,
        drop_path: float,
        norm_eps: float,
        layer_scale: float | None,
    ) -> None:
        super().__init__()
        self.drop_path, self.shares = drop_path, shares
        names = [TEXT, IMAGE, *([BOTH] if has_both else [])]
        owners = [SHARED] if shares else names
        self.attention = nn.ModuleDict({name: Attention(width, num_heads, norm_eps) for name in owners})
        self.experts = nn.ModuleDict({name: Expert(width, norm_eps) for name in names})
        self.scale1, self.scale2 = (
            None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale)) for _ in "12"
        )

    def forward(self, x: Tensor, parts: Parts, keys: Tensor | None, bias: Tensor | None) -> Tensor:
        """(B, L, width) -> (B, L, width). keys: (B, L) bool, True for real tokens; None: all. bias: (heads, L, L)."""
        owners = [(SHARED, x.shape[1])] if self.shares else parts
        qkv = [self.attention[name](piece) for name, piece in _split(x, owners)]
        outs: list[Any] = [self.attention[name].out for name, _ in owners]
        mixed = _attended(torch.cat(qkv, dim=3) if len(qkv) > 1 else qkv[0], keys, bias)
        pieces = _split(mixed, owners)
        x = x + self._drop(_joined([out(p) for out, (_, p) in zip(outs, pieces, strict=True)]), self.scale1)
        return x + self._drop(_joined([self.experts[n](p) for n, p in _split(x, parts)]), self.scale2)

    def _drop(self, x: Tensor, scale: Tensor | None) -> Tensor:
        x = x if scale is None else x * scale.to(x.dtype)
        if not self.training or self.drop_path == 0.0:
            return x
        keep = 1.0 - self.drop_path
        return x * (x.new_empty(len(x), 1, 1).bernoulli_(keep) / keep)


def _attended(qkv: Tensor, keys: Tensor | None, bias: Tensor | None) -> Tensor:
    q, k, v = qkv.unbind(0)
    seen = None if keys is None else keys[:, None, None, :]
    if bias is None:
        return attend(q, k, v, seen)
    added = bias[None] if seen is None else bias.masked_fill(~seen, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added.to(q.dtype)).transpose(1, 2).flatten(2)


def _split(x: Tensor, parts: Parts) -> list[tuple[str, Tensor]]:
    if len(parts) == 1:
        return [(parts[0][0], x)]
    pieces = x.split([num for _, num in parts], dim=1)
    return [(name, piece) for (name, _), piece in zip(parts, pieces, strict=True)]


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


class RelativeBias(nn.Module):
    """Learned biases (layers, heads, L, L) of the scores of texts, images or text and image, in this order; 0 at the start.

    Of two words or two patches by their distance; the first token of each modality has three of its own (to others, from
    others, to itself); from a word to a patch, and back, one each.
    """

    image_index: Tensor

    def __init__(self, grid: int, max_text_length: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.num_layers, columns = num_layers, num_heads * num_layers
        index = torch.from_numpy(relative_index(grid)).to(torch.get_default_device())
        self.register_buffer("image_index", index, persistent=False)
        self.image = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3, columns))
        self.text = nn.Parameter(torch.zeros(2 * max_text_length, columns))
        self.cross = nn.Parameter(torch.zeros(2, columns))  # from words to patches, from patches to words

    def forward(self, num_text: int, *, has_image: bool) -> Tensor:
        """Returns the biases of `num_text` text tokens (0 for an image alone), and then of the image if there is one."""
        tables = []
        if num_text:
            tables.append(self.text[text_index(num_text, len(self.text), self.text.device)])
        if has_image:
            tables.append(self.image[self.image_index])
        if len(tables) == 2:
            words, places = tables
            to_places = self.cross[0].expand(len(words), len(places), -1)
            to_words = self.cross[1].expand(len(places), len(words), -1)
            rows = [torch.cat([words, to_places], 1), torch.cat([to_words, places], 1)]
            tables = [torch.cat(rows, 0)]
        return tables[0].permute(2, 0, 1).unflatten(0, (self.num_layers, -1))


def text_index(length: int, num_rows: int, device: torch.device) -> Tensor:
    """Returns (L, L): the row of a table of `num_rows` for each pair of tokens: by distance from the middle one of the
    first `num_rows` - 3, and the last three for the first token.
    """
    at = torch.arange(length, device=device)
    index = at[None, :] - at[:, None] + (num_rows - 4) // 2
    index[0, :], index[:, 0], index[0, 0] = num_rows - 3, num_rows - 2, num_rows - 1
    return index


def cut_text_bias(table: Tensor, max_text_length: int) -> Tensor:
    """Returns the table of texts of at most `max_text_length` tokens, from one of longer texts."""
    least = (len(table) - 4) // 2 - (max_text_length - 2)
    if least < 0:
        raise ValueError(
            f"model: max_text_length is {max_text_length}, but the biases of the weights are of "
            f"{len(table) // 2} tokens at most"
        )
    return torch.cat([table[least : least + 2 * max_text_length - 3], table[-3:]])
