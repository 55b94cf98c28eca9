"""Batches of model input of one shape: rows are grouped by length and by the shape of their pictures.

Every batch has exactly `batch_size` rows, the last of a group filled up with copies, and a length that depends on each row
alone. So a row's result does not depend on the rows beside it, for models that read all pictures in one size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from vlpipe.stages.common.batches import fixed_batches
from vlpipe.stages.inference.ahead import READY_BYTES
from vlpipe.stages.vision_language.model import Arrays

if TYPE_CHECKING:
    import torch

K = TypeVar("K")
LENGTH_STEP = 16  # prompts are padded to a multiple of this
SEQUENCES = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
Shape = tuple[tuple[str, tuple[int, ...]], ...]


def length_of(arrays: Arrays) -> int:
    """Returns the number of tokens of the prompt; 0 without one."""
    return arrays["input_ids"].shape[1] if "input_ids" in arrays else 0


def padded_length(arrays: Arrays, side: str) -> int:
    """Returns the length that a prompt has in its batch: its own, if the model must have no padding."""
    own = length_of(arrays)
    return -(-own // LENGTH_STEP) * LENGTH_STEP if side else own


def in_groups(
    items: Iterable[tuple[K, Arrays]], batch_size: int, side: str, max_bytes: int = READY_BYTES
) -> Iterator[tuple[list[tuple[K, Arrays]], int]]:
    """Yields (batch of exactly `batch_size` items of one shape, number of real ones).

    What waits for its group to fill has at most `max_bytes`; beyond, the largest group goes first, filled up with copies.
    """
    waiting: dict[tuple[int, Shape], list[tuple[K, Arrays]]] = {}
    num_bytes = 0
    for item in items:
        key = padded_length(item[1], side), _shape(item[1])
        waiting.setdefault(key, []).append(item)
        num_bytes += _size(item[1])
        while num_bytes > max_bytes or len(waiting[key]) == batch_size:
            full = key if len(waiting[key]) == batch_size else max(waiting, key=lambda k: len(waiting[k]))
            group = waiting.pop(full)
            num_bytes -= sum(_size(arrays) for _, arrays in group)
            yield from fixed_batches(group, batch_size)
            if not waiting or key not in waiting:
                break
    for group in waiting.values():
        yield from fixed_batches(group, batch_size)


def _shape(arrays: Arrays) -> Shape:
    return tuple((name, value.shape[1:]) for name, value in sorted(arrays.items()) if name not in SEQUENCES)


def _size(arrays: Arrays) -> int:
    return sum(value.nbytes for value in arrays.values())


def collated(batch: list[Arrays], side: str, pad_id: int) -> dict[str, torch.Tensor]:
    """Returns the batch as tensors: prompts (B, L) padded on `side`, pictures joined along their first dimension."""
    import torch

    length = padded_length(batch[0], side)
    found: dict[str, torch.Tensor] = {}
    for name in batch[0]:
        values = [arrays[name] for arrays in batch]
        if name in SEQUENCES:
            fill = pad_id if name == "input_ids" else 0
            values = [_padded(value, length, side, fill) for value in values]
        found[name] = torch.from_numpy(np.concatenate(values))
    return found


def _padded(value: np.ndarray, length: int, side: str, fill: int) -> np.ndarray:
    missing = length - value.shape[1]
    return np.pad(value, ((0, 0), (missing, 0) if side == "left" else (0, missing)), constant_values=fill)
