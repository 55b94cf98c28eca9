"""Parts of second implementations, as functions of a dict of weights; and pairs to try them on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch, Stream

WORDS, MASK, LENGTHS = 31, 4, (9, 7, 5, 3, 8)


def norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].t() + w[f"{name}.bias"]


def pairs(seed: int = 0, same: list[int] | None = None) -> Batch:
    """Five pairs of different lengths, and the view `mlm` in which a third of the words is masked."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(9)[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(5, WORDS, (5, 9), generator=draw).masked_fill(~mask, 0)
    hidden = mask & (torch.rand(5, 9, generator=draw) < 0.3)
    hidden[:, 1], hidden[:, 0] = True, False
    masked = Stream(ids.masked_fill(hidden, MASK), mask, target={"ids": ids.masked_fill(~hidden, IGNORE)})
    return Batch(
        streams={"image": Stream(torch.randn(5, 3, 16, 16, generator=draw)), "text": Stream(ids, mask)},
        same=torch.arange(5) if same is None else torch.tensor(same),
        views={"mlm": {"text": masked}},
    )
