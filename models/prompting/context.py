"""Learned contexts of class names (CoOp). Zhou et al. 2022, https://arxiv.org/abs/2109.01134, section 3.2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.tokenizer import Tokenizer

Position = Literal["front", "middle", "end"]


@dataclass(frozen=True)
class Prompts:
    """Prompts of C classes with room for M context vectors. ids, mask: (C, L). slot: (C, L), which of the vectors stands at
    a position; -1 for a word."""

    ids: Tensor
    mask: Tensor
    slot: Tensor

    def to(self, device: torch.device) -> Prompts:
        return Prompts(self.ids.to(device), self.mask.to(device), self.slot.to(device))


def prompts_of(
    tokenizer: Tokenizer,
    names: Sequence[str],
    num_context: int,
    max_length: int,
    position: Position,
    ending: str = "",
) -> Prompts:
    """Returns the prompts of class names, padded to `max_length`, as some text encoders read their padding (SigLIP).

    position: where the name is: "end", after the context (`[V]1 ... [V]M NAME ending`); "middle", after half of it; "front",
    before it. Raises ValueError for a prompt longer than `max_length` tokens, those of start and end included.
    """
    before = {"front": 0, "middle": num_context // 2, "end": num_context}[position]
    tail, hole = tokenizer.ids(ending) if ending else [], int(tokenizer.plain_ids[0])
    found: list[tuple[list[int], list[int]]] = []
    for name in names:
        word_ids = tokenizer.ids(name)
        slots = [-1, *range(before), *[-1] * len(word_ids), *range(before, num_context)]
        words = iter(word_ids)
        ids = [
            tokenizer.start,
            *(hole if slot >= 0 else next(words) for slot in slots[1:]),
            *tail,
            tokenizer.end,
        ]
        if len(ids) > max_length:
            raise ValueError(
                f"the prompt of class {name!r} with {num_context} context vectors has {len(ids)} tokens, but there are "
                f"{max_length} positions"
            )
        found.append((ids, slots))
    all_ids = torch.full((len(found), max_length), tokenizer.pad)
    mask, slot = torch.zeros_like(all_ids, dtype=torch.bool), torch.full_like(all_ids, -1)
    for row, (ids, slots) in enumerate(found):
        all_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
        slot[row, : len(slots)] = torch.tensor(slots)
    return Prompts(all_ids, mask, slot)


def text_feats(model: Any, prompts: Prompts, context: Tensor) -> Tensor:
    """Returns the embeddings (C, E) of prompts, unit norm, with a gradient to `context`.

    context: (M, D) for all classes, or (C, M, D). Raises ValueError for a model whose text encoder does not look up each
    token of its texts in one table of word vectors.
    """
    vectors = context.expand(len(prompts.ids), *context.shape[-2:])
    index = prompts.slot.clamp(min=0)[:, :, None].expand(-1, -1, context.shape[-1])
    with words_replaced(model, prompts.slot >= 0, vectors.gather(1, index)):
        stream = Stream(prompts.ids, prompts.mask)
        batch = Batch({"text": stream}, same=torch.arange(len(prompts.ids), device=prompts.ids.device))
        found: Tensor = Outputs(model, batch).text_feat
    return found


def word_vectors(model: Any) -> nn.Embedding:
    """Returns the first table of word vectors of a model. Raises ValueError if it has none."""
    tables = _tables(model)
    if not tables:
        raise ValueError(f"{type(model).__name__} has no table of word vectors")
    return tables[0]


def _tables(model: Any) -> list[nn.Embedding]:
    size = model.config.vocab_size
    return [m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == size]


@contextmanager
def words_replaced(model: Any, at: Tensor, vectors: Tensor) -> Iterator[None]:
    """Meanwhile, word vectors that the model looks up are `vectors` (B, L, D) where `at` (B, L) is True.

    Raises ValueError at the end if no table of word vectors was used, and during it for a look-up of another shape.
    """
    used: list[int] = []

    def replace(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if args[0].shape != at.shape:
            raise ValueError(
                f"{type(model).__name__} looks up words in the shape {tuple(args[0].shape)}, not {tuple(at.shape)}"
            )
        used.append(1)
        return torch.where(at[:, :, None], vectors.to(output.dtype), output)

    handles = [table.register_forward_hook(replace) for table in _tables(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if len(used) != 1:
        raise ValueError(f"{type(model).__name__} looks its words up {len(used)} times; wanted once")
