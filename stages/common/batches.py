"""Runs rows through a model in batches of one fixed shape, so that a row's result does not depend on its batch.

A different batch size changed LM logits by 1.8e-6 and flipped 1 sampled token in 1,280, so a short batch is
padded. On CPU, the position of a row in its batch also changed results: with 5 to 11 rows per batch (so batch sizes must
be multiples of 16), and in small matrix products (unless the environment variable MKL_CBWR=AUTO is set before the first
matrix product of the process).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Reject
from vlpipe.stages.common.pixels import decode, to_pixels
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.inference.ahead import Ahead, Room

if TYPE_CHECKING:
    import torch
    from PIL import Image

T = TypeVar("T")
K = TypeVar("K")
Pixels = npt.NDArray[np.float32]
BATCH_ROWS = 16  # batch sizes must be multiples of this


def fixed_batches(items: Iterable[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Yields (batch of exactly `size` items, number of real items); a short batch is padded with copies of its last item.

    In caption generation, a copy ends at the same step as the original, so padding adds no decoding steps.
    """
    items = iter(items)
    while batch := list(islice(items, size)):
        num_real = len(batch)
        yield batch + batch[-1:] * (size - num_real), num_real


def batch_size_problems(batch_size: int) -> list[str]:
    """Returns error texts for `Stage.preflight`; empty if `batch_size` is a positive multiple of BATCH_ROWS."""
    if batch_size > 0 and batch_size % BATCH_ROWS == 0:
        return []
    return [
        f"batch_size must be a positive multiple of {BATCH_ROWS}, got {batch_size}: "
        "otherwise results depend on a row's position in its batch"
    ]


def read_images(
    table: pa.Table, size: int, rejects: list[Reject], ahead: Ahead | None = None
) -> Iterator[tuple[int, Pixels]]:
    """Yields (row number, pixels (3, size, size)) of images that can be decoded; appends the others to `rejects`.

    ahead: whose threads decode them.
    """
    return read_prepared(table, partial(to_pixels, size=size), rejects, ahead, 12 * size * size)


def read_prepared(
    table: pa.Table,
    prepare: Callable[[Image.Image], Pixels],
    rejects: list[Reject],
    ahead: Ahead | None = None,
    num_bytes: int = 4 * 2**20,
) -> Iterator[tuple[int, Pixels]]:
    """Yields (row number, `prepare(RGB image)`) of images that can be decoded; appends the others to `rejects`, in row
    order.

    prepare: called in threads of `ahead`. num_bytes: the size of what it returns, roughly.
    """
    ids = table["id"].to_pylist()
    fn = partial(_prepared, prepare, None if ahead is None else ahead.room)
    found = map(fn, table["image"]) if ahead is None else ahead.map(fn, table["image"], num_bytes)
    for row, pixels in enumerate(found):
        if isinstance(pixels, RowFault):
            rejects.append(Reject(ids[row], "fault", pixels.why, pixels.detail))
        else:
            yield row, pixels


def _prepared(
    prepare: Callable[[Image.Image], Pixels], room: Room | None, data: pa.Scalar
) -> Pixels | RowFault:
    held: list[int] = []

    def admit(num_bytes: int) -> None:
        if room is not None:
            held.append(room.take(num_bytes))

    try:
        return prepare(decode(data.as_py(), admit=admit))
    except RowFault as fault:
        return RowFault(fault.why, fault.detail)  # without the traceback, which holds the image
    finally:
        if room is not None:
            room.give(sum(held))


def encode_images(
    images: Iterable[tuple[K, Pixels]],
    encode: Callable[[torch.Tensor], torch.Tensor],
    batch_size: int,
    ahead: Ahead | None = None,
) -> Iterator[tuple[K, torch.Tensor]]:
    """Yields (key, encoding) per image, in order.

    images: (key, pixels (3, S, S)) each; the key, such as a row number, is passed through. encode: maps a batch
    (B, 3, S, S), B = `batch_size`, to encodings (B, ...). ahead: makes the next batch meanwhile, in another thread.
    """
    made = _stacked(images, batch_size, ahead is not None and ahead.is_pinned)
    for keys, batch in made if ahead is None else ahead.batches(made):
        yield from zip(keys, encode(batch)[: len(keys)], strict=True)


def _stacked(
    images: Iterable[tuple[K, Pixels]], size: int, is_pinned: bool
) -> Iterator[tuple[list[K], torch.Tensor]]:
    """Yields (keys, batch (size, 3, S, S)); as `fixed_batches`, a short batch is padded with copies of its last image."""
    import torch

    keys: list[K] = []
    for key, pixels in images:
        if not keys:
            batch = torch.empty((size, *pixels.shape), pin_memory=is_pinned)
            rows = batch.numpy()
        if pixels.shape != batch.shape[1:]:
            raise ValueError(
                f"pictures of one batch differ in shape: {tuple(batch.shape[1:])} and {pixels.shape}"
            )
        rows[len(keys)] = pixels
        keys.append(key)
        if len(keys) == size:
            yield keys, batch
            keys = []
    if keys:
        rows[len(keys) :] = rows[len(keys) - 1]
        yield keys, batch


def made_up(size: int, side: int) -> torch.Tensor:
    """Returns pixels (size, 3, side, side) that no picture has, to measure a model with."""
    import torch

    return torch.linspace(-2, 2, size * 3 * side * side).view(size, 3, side, side)


def seed_of(*parts: object) -> int:
    """Returns a 63-bit seed: a hash of `str` of each part, joined by `:`."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def draws(seed: int, names: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Returns a pseudo-random number per name, (N,), uniform over 64 bits: a hash of the seed and the name.

    Names sorted by it are in a random order that depends on neither their order nor the shards they are in.
    """
    each = (
        hashlib.blake2b(f"{seed}\x00{name}".encode("utf-8", "surrogatepass"), digest_size=8) for name in names
    )
    return np.frombuffer(b"".join(one.digest() for one in each), ">u8").astype(np.uint64)


def without(table: pa.Table, rejects: Iterable[Reject]) -> pa.Table:
    """Returns `table` without the rejected rows, matched by `id`."""
    rejected_ids = pa.array([r.id for r in rejects], pa.string())
    return table.filter(pc.invert(pc.is_in(table["id"], value_set=rejected_ids)))


def with_texts(table: pa.Table, texts: list[list[dict[str, Any]]]) -> pa.Table:
    """Returns `table` with its `texts` column replaced; `texts` has one list per row."""
    return table.set_column(table.schema.get_field_index("texts"), "texts", pa.array(texts, TEXTS))
