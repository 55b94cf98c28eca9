"""Batches of clips and narration, for tests of the systems that read them."""

from __future__ import annotations

import torch

from vlpipe.models.interface.batch import Batch, Stream


def narrated(
    seed: int, rows: int = 6, clips: int = 2, texts: int = 1, words: int = 40, dim: int = 10
) -> Batch:
    """Rows of `clips` clips: up to 4 windows of `dim` values each, and `texts` texts of up to 5 words of `words`.

    The last text of each clip but the first has no words, if there are several.
    """
    draw = torch.Generator().manual_seed(seed)
    windows = torch.randint(1, 5, (rows, clips, 1), generator=draw)
    mask = torch.arange(4) < windows
    feats = torch.randn(rows, clips, 4, dim, generator=draw).masked_fill(~mask[..., None], 0)
    lengths = torch.randint(1, 6, (rows, clips, texts, 1), generator=draw)
    if texts > 1:
        lengths[1:, :, -1] = 0
    ids = torch.randint(1, words - 1, (rows, clips, texts, 5), generator=draw)
    said = torch.arange(5) < lengths
    return Batch(
        {"video": Stream(feats, mask), "text": Stream(ids.masked_fill(~said, 0), said)},
        same=torch.arange(rows) + rows * seed,
    )
