"""Shuffled batch norm: a key is normed beside other rows than its query. He et al. 2020 (MoCo), section 3.3."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlpipe.models import distributed


@torch.compiler.disable  # type: ignore[untyped-decorator]
def encode_shuffled(encode: Callable[[Tensor], Tensor], x: Tensor, seed: int) -> Tensor:
    """Returns `encode(x)`, (B, ...), for which the rows of all ranks change places, and back afterwards; no gradient.

    x: (B, ...), the same B on all ranks. seed: of the order, the same on all ranks; the step of the run, for example.
    """
    rows = distributed.gather(x)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(x.device)
    first = distributed.rank() * len(x)
    own = slice(first, first + len(x))
    with torch.no_grad():
        found = distributed.gather(encode(rows[order[own]]))
    return found[order.argsort()[own]]
